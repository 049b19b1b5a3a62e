//! Gates 123 and 124: calls of tools. What the templates of real models make of calls is read back as the same calls, however the text is
//! cut into pieces; what breaks off or is none stays text. And under a constraint a model can write nothing but a valid call.

#[path = "tools/calls.rs"]
mod calls;
#[path = "tools/forced.rs"]
mod forced;
#[path = "tools/read.rs"]
mod read;
