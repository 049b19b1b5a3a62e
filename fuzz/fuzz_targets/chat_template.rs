//! Chat templates: whatever parses renders within its bounds or is an error.
#![no_main]

use dollop::template::{ChatTemplate, Message, RenderContext};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::parse(source) else { return };
    let messages = [Message::new("user", "a\nb"), Message::new("assistant", "c")];
    let _ = template.render(&messages, &RenderContext::default());
});
