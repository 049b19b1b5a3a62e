//! The forms in which models write tool calls: how each is recognized, and its markers.

/// A form of tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `<tool_call>{"name": "f", "arguments": {…}}</tool_call>`: Qwen, Hermes, Granite 4.
    Hermes,
    /// `<tool_call><function=f><parameter=a>…</parameter></function></tool_call>`: Qwen3-Coder, Qwen3.5.
    QwenCoder,
    /// `<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{…}<|call|>`: gpt-oss.
    Harmony,
    /// `<|tool_call>call:f{a:<|"|>…<|"|>}<tool_call|>`: Gemma 4.
    Gemma,
    /// `<start_function_call>call:f{a:<escape>…<escape>}<end_function_call>`: FunctionGemma.
    FunctionGemma,
    /// `<|tool_call_start|>[f(a="…")]<|tool_call_end|>`: LFM2.
    Lfm2,
    /// `<tool_call>f<arg_key>a</arg_key><arg_value>…</arg_value></tool_call>`: GLM 4.5 and later.
    Glm,
    /// `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`: DeepSeek V3.1.
    DeepSeek,
    /// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>f` and a fence with JSON: DeepSeek V3 and R1.
    DeepSeekFenced,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {…}}]`: Mistral, up to 2024.
    Mistral,
    /// `[TOOL_CALLS]f[ARGS]{…}`: Mistral since.
    MistralNamed,
    /// `<|tool_call|>[{"name": "f", "arguments": {…}}]`: Granite 3.
    Granite,
}

impl Form {
    /// Recognizes the form by strings that only its templates contain. The first match wins.
    pub fn of(template: &str) -> Option<Form> {
        let has = |word: &str| template.contains(word);
        let of: [(bool, Form); 12] = [
            (has("<|channel|>") && has("to=") && has("functions"), Form::Harmony),
            (has("<|tool_call>"), Form::Gemma),
            (has("<start_function_call>"), Form::FunctionGemma),
            (has("<|tool_call_start|>") || has("<|tool_list_start|>"), Form::Lfm2),
            (has("<｜tool▁call▁begin｜>") && has("```json"), Form::DeepSeekFenced),
            (has("<｜tool▁call▁begin｜>"), Form::DeepSeek),
            (has("[TOOL_CALLS]") && has("[ARGS]"), Form::MistralNamed),
            (has("[TOOL_CALLS]"), Form::Mistral),
            (has("<tool_call>") && has("<function="), Form::QwenCoder),
            (has("<tool_call>") && has("<arg_key>"), Form::Glm),
            (has("<tool_call>"), Form::Hermes),
            (has("<|tool_call|>"), Form::Granite),
        ];
        of.into_iter().find_map(|(is, form)| is.then_some(form))
    }

    /// Markers that begin a call or a list of calls.
    pub fn open(self) -> &'static [&'static str] {
        match self {
            Form::Hermes | Form::QwenCoder | Form::Glm => &["<tool_call>"],
            Form::Harmony => &["<|start|>", "<|channel|>"],
            Form::Gemma => &["<|tool_call>"],
            Form::FunctionGemma => &["<start_function_call>"],
            Form::Lfm2 => &["<|tool_call_start|>"],
            Form::DeepSeek | Form::DeepSeekFenced => &["<｜tool▁call▁begin｜>"],
            Form::Mistral | Form::MistralNamed => &["[TOOL_CALLS]"],
            Form::Granite => &["<|tool_call|>"],
        }
    }

    /// Markers that may end it.
    pub fn close(self) -> &'static [&'static str] {
        match self {
            Form::Hermes | Form::QwenCoder | Form::Glm => &["</tool_call>"],
            Form::Harmony => &["<|call|>"],
            Form::Gemma => &["<tool_call|>"],
            Form::FunctionGemma => &["<end_function_call>"],
            Form::Lfm2 => &["<|tool_call_end|>"],
            Form::DeepSeek => &["<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
            Form::DeepSeekFenced => &["```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
            Form::Mistral | Form::MistralNamed | Form::Granite => &[],
        }
    }

    /// A marker before the first call that carries no information.
    pub fn before(self) -> Option<&'static str> {
        matches!(self, Form::DeepSeek | Form::DeepSeekFenced).then_some("<｜tool▁calls▁begin｜>")
    }

    /// Whether calls may be a bracketed list with commas.
    pub fn is_list(self) -> bool {
        matches!(self, Form::Lfm2 | Form::Mistral | Form::Granite)
    }

    /// The quote around strings, in forms without escapes.
    pub fn quote(self) -> Option<&'static str> {
        match self {
            Form::Gemma => Some("<|\"|>"),
            Form::FunctionGemma => Some("<escape>"),
            _ => None,
        }
    }

    /// All markers that a vocabulary may have as special tokens, which show no text.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Form::Hermes | Form::QwenCoder => &["<tool_call>", "</tool_call>"],
            Form::Glm => {
                &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
            }
            Form::Harmony => {
                &["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>"]
            }
            Form::Gemma => &["<|tool_call>", "<tool_call|>", "<|\"|>"],
            Form::FunctionGemma => &["<start_function_call>", "<end_function_call>", "<escape>"],
            Form::Lfm2 => &["<|tool_call_start|>", "<|tool_call_end|>"],
            Form::DeepSeek | Form::DeepSeekFenced => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁sep｜>",
            ],
            Form::Mistral => &["[TOOL_CALLS]"],
            Form::MistralNamed => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            Form::Granite => &["<|tool_call|>"],
        }
    }
}
