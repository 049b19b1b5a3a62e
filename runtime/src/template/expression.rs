//! Parses Jinja expressions and writes them again for minijinja. What minijinja computes as Python does
//! stays; the rest becomes one of our filters (`operators.rs`, `python.rs`).

use super::lexer::{Token, fault};
use crate::error::Result;
use std::collections::BTreeSet;

/// Deepest nesting of expressions. minijinja's own limit is 150.
const MAX_DEPTH: usize = 60;

/// Longest chain of filters and tests. Each may wrap its value in one more list.
pub const MAX_CHAIN: usize = 300;

/// What may directly follow a piece of text.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub enum Binds {
    /// Nothing: a filter needs parentheses around the text.
    Loosely,
    /// A filter or test.
    Filtered,
    /// A filter, `.name`, `[…]` or a call.
    Tightly,
}

/// An expression rewritten for minijinja.
pub struct Text {
    pub text: String,
    pub binds: Binds,
}

impl Text {
    pub fn new(text: impl Into<String>, binds: Binds) -> Text {
        Text { text: text.into(), binds }
    }

    pub fn at_least(self, binds: Binds) -> String {
        if self.binds >= binds { self.text } else { format!("({})", self.text) }
    }
}

/// A parser over the tokens of one tag.
pub struct Parser<'a> {
    pub tokens: &'a [Token],
    pub at: usize,
    depth: usize,
    /// Names of the macros that take any arguments (`varargs`, `kwargs`).
    pub catching: &'a BTreeSet<String>,
    /// Whether `varargs` and `kwargs` occurred.
    pub caught: [bool; 2],
}

impl<'a> Parser<'a> {
    pub fn new(tokens: &'a [Token], catching: &'a BTreeSet<String>) -> Parser<'a> {
        Parser { tokens, at: 0, depth: 0, catching, caught: [false; 2] }
    }

    pub fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    pub fn is(&self, operator: &str) -> bool {
        matches!(self.peek(), Some(Token::Operator(o)) if *o == operator)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(n)) if n == name)
    }

    pub fn skip(&mut self, operator: &str) -> bool {
        let is = self.is(operator);
        self.at += usize::from(is);
        is
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let is = self.is_name(name);
        self.at += usize::from(is);
        is
    }

    pub fn expect(&mut self, operator: &str) -> Result<()> {
        if self.skip(operator) { Ok(()) } else { Err(fault(&format!("expected '{operator}'"))) }
    }

    /// Reads a name and spells it as minijinja accepts it.
    pub fn name(&mut self) -> Result<String> {
        match self.peek() {
            Some(Token::Name(name)) => {
                self.at += 1;
                Ok(plain(name))
            }
            _ => Err(fault("expected a name")),
        }
    }

    /// Checks that no tokens are left.
    pub fn end(&self) -> Result<()> {
        if self.at == self.tokens.len() { Ok(()) } else { Err(fault("unexpected text at the end of a tag")) }
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.tokens.len()
    }

    /// Reads an expression.
    pub fn expression(&mut self) -> Result<String> {
        Ok(self.conditional()?.text)
    }

    /// Reads an expression, or several with commas, which form a tuple.
    pub fn tuple(&mut self, conditional: bool) -> Result<String> {
        Ok(self.bare_tuple(conditional, false)?.text)
    }

    fn bare_tuple(&mut self, conditional: bool, explicit: bool) -> Result<Text> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                if !self.skip(",") {
                    break;
                }
                is_tuple = true;
            }
            let over =
                self.is_at_end() || self.is(")") || self.is("]") || self.is("}") || self.is_name("recursive");
            if over {
                break;
            }
            items.push(if conditional { self.conditional()? } else { self.or()? });
        }
        match (items.len(), is_tuple) {
            (0, _) if explicit => Ok(Text::new("()", Binds::Tightly)),
            (0, _) => Err(fault("expected an expression")),
            (1, false) => Ok(items.remove(0)),
            _ => {
                let texts: Vec<String> = items.into_iter().map(|t| t.text).collect();
                Ok(Text::new(format!("({},)", texts.join(", ")), Binds::Tightly))
            }
        }
    }

    /// Reads the targets of a `for` or `set`: names, nested in tuples. `namespace`: whether `name.attribute`
    /// is allowed.
    pub fn target(&mut self, namespace: bool) -> Result<String> {
        self.nest(|p| {
            let mut out = String::new();
            loop {
                if p.skip("(") {
                    out += &format!("({})", p.target(false)?);
                    p.expect(")")?;
                } else {
                    out += &p.name()?;
                    if namespace && p.skip(".") {
                        let name = p.name()?;
                        if name.starts_with('_') {
                            return Err(fault(
                                "a namespace cannot have a name that begins with an underscore",
                            ));
                        }
                        return Ok(format!("{out}.{name}"));
                    }
                }
                if !p.skip(",") {
                    return Ok(out);
                }
                out += ", ";
                if p.is_name("in") || p.is("=") || p.is(")") {
                    return Ok(out);
                }
            }
        })
    }

    /// Reads the parameters of a macro or a call block, without the parentheses. Also returns the names and
    /// defaults of those whose default is not a constant.
    pub fn parameters(&mut self) -> Result<(Vec<String>, Vec<(String, String)>)> {
        self.expect("(")?;
        let mut out: Vec<String> = Vec::new();
        let mut computed = Vec::new();
        while !self.skip(")") {
            if !out.is_empty() {
                self.expect(",")?;
                if self.skip(")") {
                    break;
                }
            }
            let name = self.name()?;
            if !self.skip("=") {
                out.push(name);
                continue;
            }
            let start = self.at;
            let default = self.expression()?;
            let names = self.tokens[start..self.at].iter().any(|t| match t {
                Token::Name(n) => !["true", "false", "none", "True", "False", "None"].contains(&n.as_str()),
                _ => false,
            });
            if names {
                out.push(format!("{name}=__undefined"));
                computed.push((name, default));
            } else {
                out.push(format!("{name}={default}"));
            }
        }
        Ok((out, computed))
    }

    fn nest<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(fault("an expression is nested too deep"));
        }
        let out = inner(self);
        self.depth -= 1;
        out
    }

    fn conditional(&mut self) -> Result<Text> {
        self.nest(|p| {
            let mut out = p.or()?;
            while p.skip_name("if") {
                let test = p.or()?.text;
                let text = out.at_least(Binds::Filtered);
                let other = if p.skip_name("else") {
                    format!(" else {}", p.conditional()?.at_least(Binds::Filtered))
                } else {
                    String::new()
                };
                out = Text::new(format!("{text} if {test}{other}"), Binds::Loosely);
            }
            Ok(out)
        })
    }

    fn or(&mut self) -> Result<Text> {
        self.joined("or", |p| p.joined("and", Self::not))
    }

    fn joined(&mut self, name: &str, inner: impl Fn(&mut Self) -> Result<Text>) -> Result<Text> {
        let mut out = inner(self)?;
        while self.skip_name(name) {
            let right = inner(self)?.text;
            out = Text::new(format!("{} {name} {right}", out.text), Binds::Loosely);
        }
        Ok(out)
    }

    fn not(&mut self) -> Result<Text> {
        if self.skip_name("not") {
            let inner = self.nest(Self::not)?;
            return Ok(Text::new(format!("not {}", inner.text), Binds::Loosely));
        }
        self.compared()
    }

    fn compared(&mut self) -> Result<Text> {
        let first = self.sum()?;
        let mut rest: Vec<(&str, String)> = Vec::new();
        loop {
            let operator = match self.peek() {
                Some(Token::Operator(o @ ("==" | "!=" | "<" | "<=" | ">" | ">="))) => *o,
                Some(Token::Name(n)) if n == "in" => "in",
                Some(Token::Name(n))
                    if n == "not" && self.tokens.get(self.at + 1) == Some(&Token::Name("in".into())) =>
                {
                    self.at += 1;
                    "not in"
                }
                _ => break,
            };
            self.at += 1;
            rest.push((operator, self.sum()?.text));
        }
        Ok(match &rest[..] {
            [] => first,
            [(operator @ ("==" | "!="), right)] => {
                Text::new(format!("{} {operator} {right}", first.text), Binds::Loosely)
            }
            _ => {
                let args: Vec<String> = rest.iter().map(|(o, right)| format!("\"{o}\", {right}")).collect();
                Text::new(
                    format!("{}|__compare({})", first.at_least(Binds::Filtered), args.join(", ")),
                    Binds::Filtered,
                )
            }
        })
    }

    fn sum(&mut self) -> Result<Text> {
        let mut out = self.concatenation()?;
        loop {
            let mut added = Vec::new();
            while self.skip("+") {
                added.push(self.concatenation()?.text);
            }
            if !added.is_empty() {
                out = Text::new(
                    format!("{}|__add({})", out.at_least(Binds::Filtered), added.join(", ")),
                    Binds::Filtered,
                );
            } else if self.skip("-") {
                let right = self.concatenation()?.text;
                out = Text::new(format!("{} - {right}", out.text), Binds::Loosely);
            } else {
                return Ok(out);
            }
        }
    }

    fn concatenation(&mut self) -> Result<Text> {
        let out = self.product()?;
        let mut more = Vec::new();
        while self.skip("~") {
            more.push(self.product()?.text);
        }
        if more.is_empty() {
            return Ok(out);
        }
        Ok(Text::new(
            format!("{}|__concat({})", out.at_least(Binds::Filtered), more.join(", ")),
            Binds::Filtered,
        ))
    }

    fn product(&mut self) -> Result<Text> {
        let mut out = self.power()?;
        while let Some(Token::Operator(o @ ("*" | "/" | "//" | "%"))) = self.peek() {
            self.at += 1;
            let right = self.power()?;
            out = match *o {
                "*" => Text::new(
                    format!("{}|__mul({})", out.at_least(Binds::Filtered), right.text),
                    Binds::Filtered,
                ),
                "%" => Text::new(
                    format!("{}|__mod({})", out.at_least(Binds::Filtered), right.text),
                    Binds::Filtered,
                ),
                o => Text::new(format!("{} {o} {}", out.text, right.text), Binds::Loosely),
            };
        }
        Ok(out)
    }

    fn power(&mut self) -> Result<Text> {
        let mut out = self.unary(true)?;
        while self.skip("**") {
            let right = self.unary(true)?.at_least(Binds::Filtered);
            out = Text::new(format!("({} ** {right})", out.at_least(Binds::Filtered)), Binds::Tightly);
        }
        Ok(out)
    }

    fn unary(&mut self, filters: bool) -> Result<Text> {
        let mut out = if self.skip("-") {
            let inner = self.nest(|p| p.unary(false))?.at_least(Binds::Filtered);
            let is_literal = inner.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            Text::new(
                if is_literal { format!("(-{inner})") } else { format!("({inner}|__negative)") },
                Binds::Tightly,
            )
        } else if self.skip("+") {
            let inner = self.nest(|p| p.unary(false))?.at_least(Binds::Filtered);
            Text::new(format!("({inner}|__positive)"), Binds::Tightly)
        } else {
            self.primary()?
        };
        out = self.postfix(out)?;
        if filters { self.filters(out) } else { Ok(out) }
    }

    pub fn primary(&mut self) -> Result<Text> {
        let token = self.peek().ok_or_else(|| fault("unexpected end of a tag"))?;
        self.at += 1;
        let text = match token {
            Token::Name(name) => {
                self.caught[0] |= name == "varargs";
                self.caught[1] |= name == "kwargs";
                plain(name)
            }
            Token::Integer(digits) => digits.clone(),
            Token::Float(digits) => float(digits)?,
            Token::Text(first) => {
                let mut text = first.clone();
                while let Some(Token::Text(more)) = self.peek() {
                    text += more;
                    self.at += 1;
                }
                literal(&text)
            }
            Token::Operator("(") => {
                let inner = self.nest(|p| p.bare_tuple(true, true))?;
                self.expect(")")?;
                return Ok(if inner.binds == Binds::Tightly {
                    inner
                } else {
                    Text::new(format!("({})", inner.text), Binds::Tightly)
                });
            }
            Token::Operator("[") => {
                let mut items = Vec::new();
                while !self.skip("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    if self.skip("]") {
                        break;
                    }
                    items.push(self.expression()?);
                }
                format!("[{}]", items.join(", "))
            }
            Token::Operator("{") => {
                let mut items = Vec::new();
                while !self.skip("}") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    if self.skip("}") {
                        break;
                    }
                    let key = self.expression()?;
                    self.expect(":")?;
                    items.push(format!("{key}: {}", self.expression()?));
                }
                // The spaces keep two braces from ending this tag or beginning another.
                format!("{{ {} }}", items.join(", "))
            }
            Token::Operator(o) => return Err(fault(&format!("unexpected '{o}'"))),
        };
        Ok(Text::new(text, Binds::Tightly))
    }
}

/// A name in ASCII, because minijinja accepts no other names.
fn plain(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii() { out.push(c) } else { out += &format!("_u{:x}", u32::from(c)) }
    }
    out
}

pub fn literal(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            c => out.push(c),
        }
    }
    out + "\""
}

fn float(digits: &str) -> Result<String> {
    let value: f64 = digits.parse().map_err(|_| fault("a number is malformed"))?;
    if value.is_infinite() {
        return Ok("(\"inf\"|float)".into());
    }
    let plain = format!("{value}");
    Ok(if plain.contains('.') { plain } else { plain + ".0" })
}
