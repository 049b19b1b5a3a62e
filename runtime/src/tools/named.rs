//! Reads calls of the form name, marker, JSON arguments, such as `[TOOL_CALLS]f[ARGS]{…}`.

use super::form::Form;
use super::reader::{Flow, Halt, MAX_HEAD, Reader};

#[derive(Clone, Copy)]
enum At {
    Head,
    /// The name follows the kind of the call and precedes a code fence (DeepSeek V3).
    Name,
    Fence,
    Arguments,
}

pub struct Named {
    form: Form,
    at: At,
}

impl Named {
    pub fn new(form: Form) -> Named {
        Named { form, at: At::Head }
    }

    pub fn read(&mut self, r: &mut Reader) -> Flow {
        loop {
            match self.at {
                At::Head => self.head(r)?,
                At::Name => {
                    let (name, _) = r.until(&["\n"], MAX_HEAD)?;
                    r.call(name.trim())?;
                    self.at = At::Fence;
                }
                At::Fence => {
                    r.space()?;
                    r.expect("```json")?;
                    self.at = At::Arguments;
                }
                At::Arguments => {
                    if !r.has_arguments() {
                        r.space()?;
                        if !r.rest.starts_with('{') {
                            return Err(Halt::Bad);
                        }
                    }
                    r.stream()?;
                    return r.end();
                }
            }
        }
    }

    fn head(&mut self, r: &mut Reader) -> Flow {
        let words: &[&str] = match self.form {
            Form::Harmony => &["<|message|>"],
            Form::MistralNamed => &["[ARGS]"],
            _ => &["<｜tool▁sep｜>"],
        };
        let (head, i) = r.until(words, MAX_HEAD)?;
        r.expect(words[i])?;
        if self.form == Form::DeepSeekFenced {
            self.at = At::Name;
            return Ok(());
        }
        let name = match self.form {
            Form::Harmony => {
                let name = head.split_once("to=functions.").ok_or(Halt::Bad)?.1;
                name.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or_default()
            }
            _ => head.split("[CALL_ID]").next().unwrap_or_default(),
        };
        self.at = At::Arguments;
        r.call(name.trim())
    }
}
