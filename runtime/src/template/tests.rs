//! Tests of hostile templates, and of values that a caller supplies. Gate 59 (`tests/templates.rs`) tests
//! that renderings equal Python's.

use super::*;

fn render(source: &str) -> Result<String> {
    let messages = [Message::new("user", "<b> & \"q\""), Message::new("assistant", "yes")];
    ChatTemplate::parse(source)?.render(&messages, &RenderContext::default())
}

#[test]
fn messages_and_variables_are_those_of_the_caller() {
    let messages = serde_json::json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": null, "reasoning": "r", "tool_calls": [{"z": 1, "a": 2.0}]},
    ]);
    let mut context = RenderContext {
        bos_token: "<s>".into(),
        tools: Some(serde_json::json!([{"name": "f"}])),
        now: Some(DateTime::from_unix(951_782_400 + 3723)),
        ..RenderContext::default()
    };
    context.variables.insert("enable_thinking".into(), false.into());
    let template = ChatTemplate::parse(
        "{{ bos_token }}{{ messages[0].content[0].text }}{{ messages[1].content is none }}{{ messages[1].tool_calls | tojson }}\
         {{ messages[1].reasoning_content }}{{ messages[1].thinking }}{{ tools[0].name }}{{ documents is none }}\
         {{ enable_thinking is false }}{{ strftime_now('%d %b %Y %T') }}",
    );
    let text = template.unwrap().render_json(&messages, &context).unwrap();
    assert_eq!(text, "<s>aTrue[{\"z\": 1, \"a\": 2.0}]rrfTrueTrue29 Feb 2000 01:02:03");
    for wrong in [serde_json::json!({}), serde_json::json!(["x"])] {
        assert!(ChatTemplate::parse("").unwrap().render_json(&wrong, &context).is_err());
    }
    assert_eq!(render("{{ strftime_now is defined }}{{ tools is none }}").unwrap(), "FalseTrue");
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (unix, want) in [(0, "01 Jan 1970"), (951_782_400, "29 Feb 2000"), (1_795_478_399, "23 Nov 2026")] {
        assert_eq!(DateTime::from_unix(unix).format("%d %b %Y"), want);
    }
}

#[test]
fn errors_name_the_line_of_the_template() {
    for (source, line) in [
        ("a\n{% if %}", "line 2"),
        ("{{ 1\n\n+ }}", "line 1"),
        ("\n\n{% endfor %}", "line 3"),
        ("{{ 1 }}\n{%- set x = [1,\n2] %}\n{{ x.y.z }}", "line 4"),
        ("{% raw %}\n\n{% endraw %}\n{{ raise_exception('no') }}", "line 4"),
        ("{% macro m(a) %}\n{{ varargs }}{% endmacro %}\n{{ x.y.z }}", "line 3"),
    ] {
        let text = render(source).unwrap_err().to_string();
        assert!(text.contains(line), "{source}: {text}");
    }
}

#[test]
fn hostile_templates_end_with_an_error() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
        "{{ raise_exception('only users') }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ varargs }}{{ m(1) }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 99999999999 }}",
        "{{ [1] * 99999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%.999999999f' % 1.0 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=999999999) }}",
        "{{ '{:.999999999f}'.format(1.5) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.zfill(1000000000) }}",
        "{{ '\t'.expandtabs(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ 'x' | indent(1000000000) }}",
        "{{ [1] | batch(1000000000, 1) | list }}",
        "{{ [1] | slice(1000000000, 1) | list }}",
        "{{ {} | tojson(indent=1000000000) }}",
        "{{ strftime_now('%9999d') }}",
        "{{ range(100001) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.join(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=2) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ 2 ** 99999 }}",
        "{{ 1 // 0 }}{{ 1 % 0 }}",
        "{{ [].__class__.__mro__[0].x }}",
        "{% include 'x' %}",
        "{{ x|__mod(1) }}",
        "{{ 'ab",
        "{% raw %}",
        "{#",
        "{{ (1 }}",
        "{{ 99999999999999999999999999999999999999999999 }}",
    ] {
        let text = render(source).expect_err(source).to_string();
        assert!(text.starts_with("chat template"), "{source}: {text}");
    }
    for (open, close) in
        [("(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("{1:", "}"), ("x[", "]"), ("x(", ")")]
    {
        let deep = format!("{{{{ {}1{} }}}}", open.repeat(100_000), close.repeat(100_000));
        assert!(render(&deep).is_err(), "{open}");
    }
    for between in ["~", "%", "+", "*", " and ", ".a", "|e", " is defined", "[0]", " if "] {
        let long = format!("{{{{ 1{} }}}}", format!("{between}1").repeat(50_000));
        let _ = render(&long);
    }
    assert!(render(&"{% if 1 %}".repeat(50_000)).is_err());
    assert!(render(&"{% macro m() %}{{ varargs }}".repeat(5_000)).is_err());
}

/// Values nested deeper than anything prints: built in a loop, compared, printed and dropped.
#[test]
fn deep_values_are_no_overflow() {
    for end in [
        "",
        "{{ ns.x == ns.y }}",
        "{{ ns.x }}",
        "{{ ns.x | tojson }}",
        "{{ ns.x in [ns.y] }}",
        "{{ ns.x < ns.y }}",
    ] {
        let source = "{% set ns = namespace(x=[1], y=[2]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}{% endfor %}";
        let _ = render(&(source.to_owned() + end));
    }
}

#[test]
fn any_bytes_are_no_panic() {
    let pieces = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-",
        "+",
        " ",
        "\n",
        "\r",
        "'",
        "\"",
        "\\",
        "x",
        "é",
        "1",
        ".",
        "e5",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "|",
        "is ",
        "if ",
        "for ",
        "in ",
        "set ",
        "=",
        "raw",
        "endraw",
        "%",
        "**",
        "not ",
        ",",
        ":",
        "\\x",
        "\\u00",
        "macro m(",
        "endmacro",
        "generation",
        "endgeneration",
        "varargs",
        "'%d'",
        "'{:>'",
        ".format(",
    ];
    let mut state = 1u64;
    let mut parsed = 0;
    for _ in 0..20_000 {
        let mut source = String::new();
        for _ in 0..12 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            source += pieces[(state >> 33) as usize % pieces.len()];
        }
        parsed += usize::from(render(&source).is_ok());
    }
    assert!(parsed > 100, "{parsed}: nothing was tried");
}
