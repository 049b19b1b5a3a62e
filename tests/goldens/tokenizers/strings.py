"""Strings that are hard for tokenizers, by kind. `python strings.py` prints them as JSON."""
import json

def strings():
    s = ["", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n", "\n ", " \t ", "\r\n", "\r\n\r\n", "\r", "a\r\nb", "a\rb"]
    s += ["Hello, world!", "Hello world", " Hello", "Hello ", "  Hello  ", "hello\nworld", "hello\n\nworld\n", "HELLO", "hElLo"]
    s += ["don't", "DON'T", "I'll we've they're you'd it's I'm", "I'LL WE'VE THEY'RE", "rock 'n' roll", "'quoted'", "''", "'", "\"", "O’Neil’s"]
    s += [str(n) for n in (0, 7, 42, 123, 1234, 12345, 123456, 1234567890, 10**30)]
    s += ["3.14159", "1,000,000", "1e-10", "0x1F", "-5", "+1", "50%", "$9.99", "€100", "£5", "1/2", "½", "²³", "٣٤٥", "१२३", "一二三", "Ⅷ", "1st 2nd 3rd", "2026-11-23T23:59:59Z", "192.168.0.1", "v1.2.3-rc.4", "007", "00", "1 2 3", "12 345 678"]
    s += ["a" * n for n in (2, 17, 100, 300)] + ["ab" * 60, "xyz " * 30, "=" * 40, "-" * 7, "_" * 9, "." * 5, "..." , "…", "!!!???", "?!", "#" * 6, "*" * 3]
    s += ["def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}", "if (a&&b||!c) {}", "<div class=\"x\">&nbsp;</div>", "SELECT * FROM t WHERE a='b';", "#include <stdio.h>", "let x: Vec<u8> = vec![0; 10];", "\\n\\t\\\\", "C:\\path\\to\\file", "/usr/local/bin", "https://example.com/a?b=c&d=e#f", "user@example.com", "camelCaseString", "snake_case_string", "SCREAMING_CASE", "kebab-case", "a->b::c.d", "x=y+z*w", "()[]{}<>", "```python\nprint('hi')\n```", "$x^2 + y^2 = z^2$", "\\frac{a}{b}", "// comment\n", "/* a\n * b\n */", "    indented", "        twice", "\tindented", "a\n\n    b\n        c", "{\"key\": [1, 2.5, null, true]}", "key: value\n- item\n- item"]
    s += ["café", "cafe\u0301", "naïve", "Zürich", "Straße", "ŁÓDŹ", "Ångström", "A\u030angstrom", "ñandú", "İstanbul ıi", "ﬁne ﬂow", "Ǆ ǅ ǆ", "ŉ", "ﷺ", "Å", "Ω Ω", "ẛ̣"]
    s += ["Привет, мир", "ПРИВЕТ", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "سلام دنیا", "नमस्ते दुनिया", "ক্ষমা", "வணக்கம்", "สวัสดีชาวโลก", "ສະບາຍດີ", "မင်္ဂလာပါ", "გამარჯობა", "Բարեւ աշխարհ", "ሰላም ዓለም", "Xin chào thế giới", "Tiếng Việt có dấu", "你好，世界！", "今天天气很好。", "繁體中文", "こんにちは世界", "カタカナ", "ひらがな", "ﾊﾝｶｸ", "안녕하세요 세계", "ㅋㅋㅋ", "한글\u1112\u1161\u11ab", "龍龘𠀀𪚥", "𝓗𝓮𝓵𝓵𝓸", "𝟘𝟙𝟚", "ＡＢＣ１２３", "ᏣᎳᎩ", "ᐃᓄᒃᑎᑐᑦ", "𐍈𐌰", "ꦗꦮ"]
    s += ["😀", "😀😀😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇩🇪", "❤️", "☺", "☺️", "1️⃣", "🫠🪿", "👩🏿‍🚀 in space", "a😀b", "😀 😀", "🤷‍♂️?", "©®™", "→←↑↓", "♠♣♥♦", "✓✗", "½¼¾", "∑∏∫√∞≠≤≥", "αβγδε", "ℝ ⊂ ℂ", "°C", "№ 5", "†‡§¶", "『』「」【】", "«»„“”‚‘’", "–—―‐", "﹏﹋"]
    s += ["a b", "a b", "a　b", "a\u200bb", "a\u200cb", "a\u200db", "\u200b", "\ufeffBOM", "a\u2060b", "a\u00adb", "a\u2028b", "a\u2029b", "\u202eabc\u202c", "a\u0085b", "\x0b\x0c", "\x00", "a\x00b", "\x01\x02\x1f", "\x7f", "\ufffd", "a\ufffdb", "\ue000", "\U000f0000", "\U0010ffff", "\u0301", "\u0300\u0301\u0302", "e\u0301\u0302\u0303", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢"]
    s += ["<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "<s>", "</s>", "<unk>", "[INST] hi [/INST]", "<|begin_of_text|>x<|eot_id|>", "<｜User｜>hi<｜Assistant｜>", "<start_of_turn>user\nhi<end_of_turn>", "<|start|>assistant<|channel|>final<|message|>x<|end|>", "<|im_start", "<|unknown|>", "<think>\nhm\n</think>", "a<|im_end|>b", " <|im_end|> ", "<bos>x", "<|endoftext|><|endoftext|>"]
    s += ["The quick brown fox jumps over the lazy dog.", "Mr. Smith paid $1,234.56 on 3/4/2025 at 5:30 p.m.!", "It was the best of times,\nit was the worst of times,\n", "  leading and trailing  ", "tabs\tand  double  spaces", "end with spaces   ", "\n\n  \n mixed \t\n", "ALL CAPS AND lower AND Title Case", "re-enter co-operate e-mail", "e.g. i.e. etc.", "Antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis", "日本語とEnglishのmix", "Русский and English", "emoji😀in😀text", "ßẞ", "a.b,c;d:e!f?g", "word1word2", "x1y2z3", "100km/h", "#hashtag @mention", "o_O ^_^ ¯\\_(ツ)_/¯", "Lorem ipsum dolor sit amet, consectetur adipiscing elit.", "🎉 Party at 9pm — bring 3 friends & a 🎂!"]
    return s

if __name__ == "__main__":
    print(json.dumps(strings()))
