//! Chat templates: Jinja, as Hugging Face's tokenizers use it, by minijinja.
//!
//! Templates come with models and are untrusted: they run with a budget of steps and of output, see no files, no clock
//! and no environment.

use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

/// Instructions that one rendering may take: real templates take some hundred per message.
const MAX_STEPS: u64 = 5_000_000;

/// Longest template and longest rendering.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
const MAX_OUTPUT_BYTES: usize = 64 << 20;

const NAME: &str = "chat template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// Year.
    pub year: i32,
    /// Month, from 1.
    pub month: u8,
    /// Day, from 1.
    pub day: u8,
}

impl Date {
    /// The day of a Unix time (seconds since 1970, UTC), by Howard Hinnant's civil-from-days.
    pub fn from_unix(seconds: u64) -> Date {
        let z = (seconds / 86_400) as i64 + 719_468;
        let (era, doe) = (z / 146_097, z % 146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + i64::from(month <= 2);
        Date { year: year as i32, month: month as u8, day: (doy - (153 * mp + 2) / 5 + 1) as u8 }
    }

    /// As C's `strftime`, for the fields that templates use: `%Y %m %d %b %B %y %%`.
    fn format(self, format: &str) -> String {
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        let month = MONTHS.get(usize::from(self.month).wrapping_sub(1)).copied().unwrap_or_default();
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            match if c == '%' { chars.next() } else { None } {
                Some('Y') => out += &self.year.to_string(),
                Some('y') => out += &format!("{:02}", self.year.rem_euclid(100)),
                Some('m') => out += &format!("{:02}", self.month),
                Some('d') => out += &format!("{:02}", self.day),
                Some('b') => out += month.get(..3).unwrap_or_default(),
                Some('B') => out += month,
                Some(other) => out.push(other),
                None => out.push(c),
            }
        }
        out
    }
}

/// What a template sees beside the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderContext {
    /// Spelling of the beginning-of-text token.
    pub bos_token: String,
    /// Spelling of the end-of-text token.
    pub eos_token: String,
    /// End with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Tools that the model may call, as JSON.
    pub tools: Option<serde_json::Value>,
    /// Today, for templates that say so: the library reads no clock.
    pub date: Option<Date>,
}

/// A parsed template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
}

impl ChatTemplate {
    /// # Errors
    /// `Template`, with the line, where the text does not parse.
    pub fn parse(source: &str) -> Result<ChatTemplate> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(Error::Template(format!("{} bytes are more than any template has", source.len())));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are Jinja's own"));
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_recursion_limit(200);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |what: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, what))
        });
        // Marks the answer for training only; here it is no more than its contents.
        let plain = source.replace("{% generation %}", "").replace("{% endgeneration %}", "");
        let plain = plain.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "");
        environment.add_template_owned(NAME, plain).map_err(describe)?;
        Ok(ChatTemplate { environment, source: source.to_owned() })
    }

    /// The text it was parsed from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as the model was trained to read it.
    ///
    /// # Errors
    /// `Template` where the template refuses the messages, fails, or does not end.
    pub fn render(&self, messages: &[Message], with: &RenderContext) -> Result<String> {
        let date = with.date;
        let now =
            Value::from_function(move |format: String| date.map_or_else(String::new, |d| d.format(&format)));
        let template = self.environment.get_template(NAME).map_err(describe)?;
        let values = context! {
            messages => Value::from(Serde(messages)),
            bos_token => &with.bos_token,
            eos_token => &with.eos_token,
            add_generation_prompt => with.add_generation_prompt,
            tools => Value::from(Serde(&with.tools)),
            // Templates ask whether the function is there.
            strftime_now => if date.is_some() { now } else { Value::UNDEFINED },
        };
        let mut out = Limited(Vec::new());
        template.render_captured_to(values, &mut out).map_err(describe)?;
        String::from_utf8(out.0).map_err(|_| Error::Template("the rendering is not UTF-8".into()))
    }
}

/// Output with a bound.
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::Error::other("the rendering is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn describe(e: minijinja::Error) -> Error {
    let line = e.line().map_or_else(String::new, |n| format!("line {n}: "));
    let what = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    Error::Template(format!("{line}{what}"))
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it: a space behind `,` and `:`.
fn to_json(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let failed = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options do not change what templates print of plain data.
    let _ = (options.get::<Option<bool>>("ensure_ascii")?, options.get::<Option<bool>>("sort_keys")?);
    let mut out = Vec::new();
    match indent {
        Some(n) => {
            let indent = " ".repeat(n.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, pretty))
                .map_err(failed)?;
        }
        None => Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, Spaced))
            .map_err(failed)?,
    }
    Ok(String::from_utf8(out).expect("JSON is UTF-8"))
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        let messages = [Message::new("user", "<b> & \"q\""), Message::new("assistant", "yes")];
        ChatTemplate::parse(source)?.render(&messages, &RenderContext::default())
    }

    #[test]
    fn what_templates_of_hugging_face_use() {
        let cases = [
            ("{% for m in messages[::-1] %}{{ m.role.upper() }},{% endfor %}", "ASSISTANT,USER,"),
            ("{{ messages[0].content }}", "<b> & \"q\""),
            ("{{ {'a': [1, true, none, 'é']} | tojson }}", "{\"a\": [1, true, null, \"é\"]}"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            ("{{ 'a-b'.split('-')[1].strip() }}{{ 'x'.startswith('x') }}", "bTrue"),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
                "yes",
            ),
            ("{{ tools is none }}{{ True }}", "TrueTrue"),
            ("{% generation %}x{% endgeneration %}", "x"),
        ];
        for (source, want) in cases {
            assert_eq!(render(source).unwrap(), want, "{source}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix, want) in [(0, "01 Jan 1970"), (951_782_400, "29 Feb 2000"), (1_795_478_399, "23 Nov 2026")]
        {
            assert_eq!(Date::from_unix(unix).format("%d %b %Y"), want);
        }
    }

    #[test]
    fn hostile_templates_end_with_an_error() {
        for (source, want) in [
            ("{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}", ""),
            ("{{ raise_exception('only users') }}", "only users"),
            ("a\n{% if %}", "line 2"),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ""),
            ("{{ 'x' * 99999999999 }}", ""),
        ] {
            let text = render(source).unwrap_err().to_string();
            assert!(text.starts_with("chat template") && text.contains(want), "{source}: {text}");
        }
    }
}
