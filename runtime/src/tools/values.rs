//! Reads calls in function syntax: `f(a="…", b=[1, 2])` of LFM2, and `call:f{a:<|"|>…<|"|>,b:[1,2]}` of
//! Gemma.

use super::form::Form;
use super::literal::{self, Ends};
use super::reader::{Flow, Halt, MAX_HEAD, Reader};

enum At {
    Head,
    Next,
    Key,
    Value(Ends),
}

pub struct Values {
    at: At,
    form: Form,
    key: String,
    first: bool,
}

impl Values {
    pub fn new(form: Form) -> Values {
        Values { at: At::Head, form, key: String::new(), first: true }
    }

    pub fn read(&mut self, r: &mut Reader) -> Flow {
        let (open, close, is) = if self.form == Form::Lfm2 { ("(", ")", "=") } else { ("{", "}", ":") };
        loop {
            match &mut self.at {
                At::Head => {
                    r.space()?;
                    let (head, _) = r.until(&[open], MAX_HEAD)?;
                    r.expect(open)?;
                    let name = match self.form {
                        Form::Lfm2 => &*head,
                        _ => head.strip_prefix("call:").ok_or(Halt::Bad)?,
                    };
                    r.call(name.trim())?;
                    self.at = At::Next;
                }
                At::Next => {
                    r.space()?;
                    if r.word(close)? {
                        r.close();
                        return r.end();
                    }
                    if !std::mem::take(&mut self.first) {
                        r.expect(",")?;
                    }
                    self.at = At::Key;
                }
                At::Key => {
                    r.space()?;
                    let (key, _) = r.until(&[is], MAX_HEAD)?;
                    r.expect(is)?;
                    let key = key.trim();
                    let bare = self.form.quote().and_then(|q| key.strip_prefix(q)?.strip_suffix(q));
                    self.key = bare.unwrap_or(key).to_owned();
                    self.at = At::Value(Ends::new(self.form.quote()));
                }
                At::Value(ends) => {
                    let text = r.ended(|rest, at| ends.find(rest, at))?;
                    let value = literal::parse(text.trim(), self.form.quote()).ok_or(Halt::Bad)?;
                    r.pair(&self.key, &value);
                    self.at = At::Next;
                }
            }
        }
    }
}
