//! Parses what follows an expression: attributes, items, calls, filters and tests.

use super::expression::{Binds, MAX_CHAIN, Parser, Text, literal};
use super::lexer::{Token, fault};
use super::python::may_be_method;
use crate::error::Result;

impl Parser<'_> {
    pub fn postfix(&mut self, mut out: Text) -> Result<Text> {
        loop {
            if self.skip(".") {
                out = match self.peek() {
                    Some(Token::Integer(i)) => {
                        self.at += 1;
                        Text::new(format!("{}[{i}]", out.at_least(Binds::Tightly)), Binds::Tightly)
                    }
                    _ => self.attribute(out)?,
                };
            } else if self.is("[") {
                out = self.subscript(out)?;
            } else if self.is("(") {
                out = self.call(out)?;
            } else {
                return Ok(out);
            }
        }
    }

    fn attribute(&mut self, out: Text) -> Result<Text> {
        let Some(Token::Name(name)) = self.peek() else {
            return Err(fault("expected a name or a number after '.'"));
        };
        self.at += 1;
        let text = if may_be_method(name) && !self.is("(") {
            format!("({}|__attr({}))", out.at_least(Binds::Filtered), literal(name))
        } else if name.is_ascii() {
            format!("{}.{name}", out.at_least(Binds::Tightly))
        } else {
            format!("{}[{}]", out.at_least(Binds::Tightly), literal(name))
        };
        Ok(Text::new(text, Binds::Tightly))
    }

    fn subscript(&mut self, out: Text) -> Result<Text> {
        self.expect("[")?;
        let text = match (self.peek(), self.tokens.get(self.at + 1)) {
            (Some(Token::Text(key)), Some(Token::Operator("]"))) if !may_be_method(key) => {
                self.at += 2;
                format!("{}[{}]", out.at_least(Binds::Tightly), literal(key))
            }
            _ => {
                let mut items = Vec::new();
                let mut slice = None;
                loop {
                    let start = if self.is(":") { "none".to_owned() } else { self.expression()? };
                    if self.skip(":") {
                        let ends = |p: &Self| p.is("]") || p.is(",") || p.is(":");
                        let stop = if ends(self) { "none".to_owned() } else { self.expression()? };
                        let step = if self.skip(":") && !ends(self) {
                            self.expression()?
                        } else {
                            "none".to_owned()
                        };
                        slice = Some(format!("{start}, {stop}, {step}"));
                    }
                    items.push(start);
                    if !self.skip(",") {
                        break;
                    }
                }
                self.expect("]")?;
                let object = out.at_least(Binds::Filtered);
                match (slice, &items[..]) {
                    (Some(slice), [_]) => format!("({object}|__slice({slice}))"),
                    (None, [key]) => format!("({object}|__item({key}))"),
                    (None, _) => format!("({object}|__item(({},)))", items.join(", ")),
                    (Some(_), _) => return Err(fault("several slices are not supported")),
                }
            }
        };
        Ok(Text::new(text, Binds::Tightly))
    }

    fn call(&mut self, out: Text) -> Result<Text> {
        // Arguments of a macro or a recursive loop may nest deeper with every call, so they are measured
        // (`depth.rs`).
        let args = self.arguments(out.binds == Binds::Tightly && !out.text.contains(['.', '(']))?;
        let text = if self.catching.contains(&out.text) {
            format!("__call({}{}{args})", out.text, if args.is_empty() { "" } else { ", " })
        } else {
            format!("{}({args})", out.at_least(Binds::Tightly))
        };
        Ok(Text::new(text, Binds::Tightly))
    }

    fn arguments(&mut self, keep: bool) -> Result<String> {
        let kept = |text: String| {
            if keep && text.contains(['[', '{', ',', '|']) { format!("({text})|__keep") } else { text }
        };
        self.expect("(")?;
        let mut out: Vec<String> = Vec::new();
        let mut named = false;
        while !self.skip(")") {
            if !out.is_empty() {
                self.expect(",")?;
                if self.skip(")") {
                    break;
                }
            }
            let is_named = matches!(self.peek(), Some(Token::Name(_)))
                && self.tokens.get(self.at + 1) == Some(&Token::Operator("="));
            if is_named {
                let name = self.name()?;
                self.expect("=")?;
                named = true;
                out.push(format!("{name}={}", kept(self.expression()?)));
            } else {
                let star = if self.skip("**") {
                    "**"
                } else if self.skip("*") {
                    "*"
                } else {
                    ""
                };
                if named && star.is_empty() {
                    return Err(fault("a positional argument follows a named one"));
                }
                named |= star == "**";
                let text = self.expression()?;
                out.push(format!("{star}{}", if star.is_empty() { kept(text) } else { text }));
            }
        }
        Ok(out.join(", "))
    }

    /// Reads the filters, tests and calls that follow an expression.
    pub fn filters(&mut self, mut out: Text) -> Result<Text> {
        for _ in 0..MAX_CHAIN {
            if self.skip("|") {
                let filter = self.filter()?;
                out = Text::new(format!("{}|{filter}", out.at_least(Binds::Filtered)), Binds::Filtered);
            } else if self.skip_name("is") {
                out = self.test(out)?;
            } else if self.is("(") {
                out = self.call(out)?;
            } else {
                return Ok(out);
            }
        }
        Err(fault("there are too many filters in a row"))
    }

    fn dotted(&mut self) -> Result<String> {
        let mut name = self.name()?;
        while self.skip(".") {
            name = name + "." + &self.name()?;
        }
        Ok(name)
    }

    /// Reads a filter's name and arguments.
    pub fn filter(&mut self) -> Result<String> {
        let name = self.dotted()?;
        if name.starts_with("__") {
            return Err(fault(&format!("there is no filter '{name}'")));
        }
        Ok(if self.is("(") { format!("{name}({})", self.arguments(false)?) } else { name })
    }

    fn test(&mut self, out: Text) -> Result<Text> {
        let not = if self.skip_name("not") { "not " } else { "" };
        // Tests may have operators as names, but not here.
        let name = self.dotted()?;
        let ends = ["else", "or", "and"].iter().any(|n| self.is_name(n));
        let begins = match self.peek() {
            Some(Token::Name(_)) => !ends,
            Some(Token::Operator(o)) => ["[", "{"].contains(o),
            token => token.is_some(),
        };
        let args = if self.is("(") {
            format!("({})", self.arguments(false)?)
        } else if begins {
            if self.is_name("is") {
                return Err(fault("You cannot chain multiple tests with is"));
            }
            let primary = self.primary()?;
            format!("({})", self.postfix(primary)?.text)
        } else {
            String::new()
        };
        Ok(Text::new(format!("({} is {not}{name}{args})", out.at_least(Binds::Filtered)), Binds::Tightly))
    }
}
