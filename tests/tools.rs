//! Gates 123 and 124: tool calls. Calls rendered by the templates of real models are parsed back to the same calls, for
//! any split of the text; incomplete or invalid ones stay text. With a constraint a model can only write valid calls.

#[path = "tools/calls.rs"]
mod calls;
#[path = "tools/forced.rs"]
mod forced;
#[path = "tools/read.rs"]
mod read;
