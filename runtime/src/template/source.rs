//! Rewrites a template's text for minijinja: line ends, statements that only Jinja or transformers has, and
//! expressions.
//!
//! Tags are read by Jinja's rules and written again, with line numbers kept. Comments, and text outside of
//! tags, stay unchanged.

use super::expression::{Parser, literal};
use super::lexer::{self, Tag, Token, fault};
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// Deepest nesting of blocks, and most macros that take any arguments.
const MAX_OPEN: usize = 100;
const MAX_CATCHING: usize = 500;

/// Returns the template rewritten for minijinja.
pub fn prepare(source: &str) -> Result<String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut catching = BTreeSet::new();
    let mut out = Writer::run(&source, &catching)?;
    // Calls of a macro that takes any arguments are rewritten differently, and may come before the macro. So
    // run again with the macros found.
    if !out.catching.is_empty() {
        catching = std::mem::take(&mut out.catching);
        out = Writer::run(&source, &catching)?;
    }
    Ok(out.out)
}

/// An open block: its tag, and for a macro its name, where its parameters end in the output, and whether it
/// uses `varargs` and `kwargs`.
struct Open {
    tag: String,
    name: String,
    parameters_end: usize,
    caught: [bool; 2],
}

struct Writer<'a> {
    source: &'a str,
    known: &'a BTreeSet<String>,
    catching: BTreeSet<String>,
    open: Vec<Open>,
    out: String,
}

impl<'a> Writer<'a> {
    fn run(source: &'a str, known: &'a BTreeSet<String>) -> Result<Writer<'a>> {
        let mut writer =
            Writer { source, known, catching: BTreeSet::new(), open: Vec::new(), out: String::new() };
        let mut at = 0;
        while let Some(found) = find_tag(source, at) {
            writer.out.push_str(&source[at..found]);
            at = writer.tag(found).map_err(|e| match e {
                Error::Template(what) => {
                    Error::Template(format!("line {}: {what}", 1 + source[..found].matches('\n').count()))
                }
                e => e,
            })?;
        }
        writer.out.push_str(&source[at..]);
        match writer.open.last() {
            Some(open) => Err(fault(&format!("the block '{}' is not closed", open.tag))),
            None => Ok(writer),
        }
    }

    /// Writes the tag at `start`. Returns the position after it.
    fn tag(&mut self, start: usize) -> Result<usize> {
        let rest = &self.source[start..];
        if rest.starts_with("{#") {
            let end = rest.find("#}").ok_or_else(|| fault("a comment is not closed"))? + 2;
            self.out.push_str(&rest[..end]);
            return Ok(start + end);
        }
        if let Some(raw) = raw_block(rest)? {
            // Write it as a printed text: minijinja drops the line end after a raw tag, Jinja does not.
            let [left, _, _, right] = raw.signs;
            self.out.push_str("{%");
            self.out.extend(left);
            self.out.push_str(" with -%}{{ ");
            self.out.push_str(&literal(raw.text));
            self.out.push_str(" }}{%- endwith ");
            self.out.push_str(&"\n".repeat(rest[..raw.end].matches('\n').count()));
            self.out.extend(right);
            self.out.push_str("%}");
            return Ok(start + raw.end);
        }
        let close = if rest.starts_with("{{") { "}}" } else { "%}" };
        let sign = rest[2..].chars().next().filter(|c| matches!(c, '-' | '+'));
        // In `{{+` the plus belongs to the number: only blocks have that mark.
        let sign = sign.filter(|&c| c == '-' || close == "%}");
        let tag = lexer::tag(self.source, start + 2 + usize::from(sign.is_some()), close)?;
        let lines = self.source[start..tag.end].matches('\n').count();
        self.out.push_str(&rest[..2]);
        self.out.extend(sign);
        self.out.push(' ');
        if close == "}}" {
            self.print(&tag)?;
        } else {
            self.statement(&tag)?;
        }
        self.out.push_str(&"\n".repeat(lines));
        self.out.push(' ');
        self.out.extend(tag.sign);
        self.out.push_str(close);
        Ok(tag.end)
    }

    fn print(&mut self, tag: &Tag) -> Result<()> {
        let mut parser = Parser::new(&tag.tokens, self.known);
        let text = parser.tuple(true)?;
        parser.end()?;
        self.catch(parser.caught);
        self.out.push_str(&text);
        Ok(())
    }

    /// Records that the innermost macro uses `varargs` or `kwargs`.
    fn catch(&mut self, caught: [bool; 2]) {
        if let Some(open) = self.open.iter_mut().rev().find(|o| o.tag == "macro") {
            open.caught[0] |= caught[0];
            open.caught[1] |= caught[1];
        }
    }

    fn statement(&mut self, tag: &Tag) -> Result<()> {
        let Some(Token::Name(name)) = tag.tokens.first() else { return Err(fault("a block has no name")) };
        let mut parser = Parser::new(&tag.tokens[1..], self.known);
        let p = &mut parser;
        let mut opens = None;
        let mut parameters_end = 0;
        let text = match name.as_str() {
            "if" => {
                opens = Some("if");
                format!("if {}", p.tuple(false)?)
            }
            "elif" => format!("elif {}", p.tuple(false)?),
            "else" | "break" | "continue" => name.clone(),
            "for" => {
                opens = Some("for");
                for_text(p)?
            }
            "set" => {
                let (text, opens_block) = set_text(p)?;
                opens = opens_block.then_some("set");
                text
            }
            "with" => {
                opens = Some("with");
                with_text(p)?
            }
            "macro" => {
                opens = Some("macro");
                let (head, rest) = macro_text(p)?;
                parameters_end = self.out.len() + head.len();
                head + &rest
            }
            "call" => {
                opens = Some("call");
                let parameters =
                    if p.is("(") { format!("({})", p.parameters()?.0.join(", ")) } else { String::new() };
                format!("call{parameters} {}", p.expression()?)
            }
            "filter" => {
                opens = Some("filter");
                format!("filter {}{}", p.filter()?, filters(p)?)
            }
            "block" => {
                opens = Some("block");
                let block = p.name()?;
                while p.skip_name("scoped") || p.skip_name("required") {}
                format!("block {block}")
            }
            "autoescape" => {
                opens = Some("autoescape");
                format!("autoescape {}", p.expression()?)
            }
            // Marks the answer for training. A `with` block also keeps variables set in it local.
            "generation" => {
                opens = Some("generation");
                "with".to_owned()
            }
            "include" | "import" | "from" | "extends" => {
                return Err(fault("a chat template cannot use other templates"));
            }
            _ => match name.strip_prefix("end") {
                Some(block) => {
                    self.close(block)?;
                    if block == "block" && !p.is_at_end() {
                        p.name()?;
                    }
                    if block == "generation" { "endwith".to_owned() } else { name.clone() }
                }
                None => return Err(fault(&format!("Encountered unknown tag '{name}'."))),
            },
        };
        p.end()?;
        let caught = parser.caught;
        self.catch(caught);
        self.out.push_str(&text);
        if let Some(block) = opens {
            self.begin(block, tag, parameters_end)?;
        }
        Ok(())
    }

    fn begin(&mut self, block: &str, tag: &Tag, parameters_end: usize) -> Result<()> {
        let name = match tag.tokens.get(1) {
            Some(Token::Name(name)) => name.clone(),
            _ => String::new(),
        };
        if self.open.len() == MAX_OPEN {
            return Err(fault("blocks are nested too deep"));
        }
        self.open.push(Open { tag: block.to_owned(), name, parameters_end, caught: [false; 2] });
        Ok(())
    }

    fn close(&mut self, block: &str) -> Result<()> {
        let Some(open) = self.open.pop_if(|o| o.tag == block) else {
            return Err(fault(&format!("Encountered unknown tag 'end{block}'.")));
        };
        if open.caught != [false; 2] {
            let first = self.out[..open.parameters_end].ends_with('(');
            let mut names: Vec<&str> = Vec::new();
            if open.caught[0] {
                names.push("varargs=()");
            }
            if open.caught[1] {
                names.push("kwargs={ }");
            }
            let more = format!("{}{}", if first { "" } else { ", " }, names.join(", "));
            self.out.insert_str(open.parameters_end, &more);
            for outer in self.open.iter_mut().filter(|o| o.parameters_end > open.parameters_end) {
                outer.parameters_end += more.len();
            }
            self.catching.insert(open.name);
            if self.catching.len() > MAX_CATCHING {
                return Err(fault("too many macros take any arguments"));
            }
        }
        Ok(())
    }
}

fn for_text(p: &mut Parser) -> Result<String> {
    let target = p.target(false)?;
    if !p.skip_name("in") {
        return Err(fault("expected 'in'"));
    }
    let mut text = format!("for {target} in ({})|__iterate", p.tuple(false)?);
    if p.skip_name("if") {
        text += &format!(" if {}", p.expression()?);
    }
    if p.skip_name("recursive") {
        text += " recursive";
    }
    Ok(text)
}

/// The text of a `set`, and whether it opens a block whose content is the value.
fn set_text(p: &mut Parser) -> Result<(String, bool)> {
    let target = p.target(true)?;
    if !p.skip("=") {
        return Ok((format!("set {target}{}", filters(p)?), true));
    }
    let keep = if target.contains('.') { "__keep_part" } else { "__keep" };
    Ok((format!("set {target} = ({})|{keep}", p.tuple(true)?), false))
}

fn with_text(p: &mut Parser) -> Result<String> {
    let mut parts = Vec::new();
    while !p.is_at_end() {
        if !parts.is_empty() {
            p.expect(",")?;
        }
        let target = p.target(false)?;
        p.expect("=")?;
        parts.push(format!("{target} = {}", p.expression()?));
    }
    Ok(format!("with {}", parts.join(", ")))
}

/// A macro tag up to the end of its parameters, and the rest of the tag.
fn macro_text(p: &mut Parser) -> Result<(String, String)> {
    let name = p.name()?;
    let (parameters, defaults) = p.parameters()?;
    // A default may use earlier parameters, which minijinja does not know in that place. So set it in the
    // macro's body.
    let set = |(name, default): (String, String)| {
        format!(" %}}{{% set {name} = {name} if {name} is defined else ({default})")
    };
    let rest = ")".to_owned() + &defaults.into_iter().map(set).collect::<String>();
    Ok((format!("macro {name}({}", parameters.join(", ")), rest))
}

/// The filters that follow, each with its `|`.
fn filters(p: &mut Parser) -> Result<String> {
    let mut text = String::new();
    while p.skip("|") {
        text += &format!(" | {}", p.filter()?);
    }
    Ok(text)
}

/// The position of the next `{{`, `{%` or `{#`.
fn find_tag(source: &str, from: usize) -> Option<usize> {
    let bytes = source.as_bytes();
    (from..bytes.len().saturating_sub(1))
        .find(|&i| bytes[i] == b'{' && matches!(bytes[i + 1], b'{' | b'%' | b'#'))
}

/// A raw block: its text, and the position after it.
struct Raw<'a> {
    text: &'a str,
    end: usize,
    /// The `-` and `+` signs of both tags, in order.
    signs: [Option<char>; 4],
}

/// The raw block at the beginning of `rest`, if there is one.
fn raw_block(rest: &str) -> Result<Option<Raw<'_>>> {
    let signed = |text: &str| text.chars().next().filter(|c| matches!(c, '-' | '+'));
    let named = |text: &str, name: &str| -> Option<(usize, [Option<char>; 2])> {
        let inside = text.strip_prefix("{%")?;
        let left = signed(inside);
        let inside = inside[left.map_or(0, char::len_utf8)..].trim_start().strip_prefix(name)?.trim_start();
        let right = signed(inside);
        let inside = inside[right.map_or(0, char::len_utf8)..].strip_prefix("%}")?;
        Some((text.len() - inside.len(), [left, right]))
    };
    let Some((begin, [a, b])) = named(rest, "raw") else { return Ok(None) };
    let mut at = begin;
    while let Some(found) = rest[at..].find("{%") {
        if let Some((length, [c, d])) = named(&rest[at + found..], "endraw") {
            let mut text = &rest[begin..at + found];
            if b == Some('-') {
                text = text.trim_start();
            }
            let line = text.rfind('\n').map(|i| i + 1);
            match (c, line) {
                (Some('-'), _) => text = text.trim_end(),
                (None, Some(line)) if text[line..].trim().is_empty() => text = &text[..line],
                _ => {}
            }
            return Ok(Some(Raw { text, end: at + found + length, signs: [a, b, c, d] }));
        }
        at += found + 2;
    }
    Err(fault("Missing end of raw directive"))
}
