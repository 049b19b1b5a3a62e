// dollop.h: the C interface of Dollop, which runs Mixture-of-Experts language models.
//
// Generated from ffi/src by cbindgen; do not edit. docs/embedding.md is a guide to it.
//
// Statuses. A function that can fail returns a dollop_status; DOLLOP_OK is 0. dollop_last_error() returns a text to display.
// Outputs are written last, so a failed call leaves them unchanged.
//
// Handles. dollop_engine, dollop_session, dollop_chat and dollop_plan are opaque. The caller frees each with the function of its
// type; freeing NULL does nothing. A closed handle is detected (DOLLOP_CLOSED), and so is one of another type
// (DOLLOP_WRONG_HANDLE). Handles do not depend on each other: an engine may be freed before its sessions.
//
// Pointers. A pointer argument is NULL, or points to a value of its type during the call; only dollop_set_log keeps one. Texts
// are NUL-terminated UTF-8, paths as in the system. In a text for a char **, NUL becomes U+FFFD. Empty arrays may be NULL.
//
// Structs begin with struct_size. NAME_init(&s, sizeof s) sets it, and all other fields to their defaults. Call it first, then
// change what should differ. Structs grow only at their end, so programs work with newer libraries unchanged.
//
// Threads. Any number of threads may use engines and plans at a time. A session or chat runs one call at a time, on any thread; a
// second one returns DOLLOP_BUSY. During a generation only _cancel and _free may be called on it, from any thread.
//
// Callbacks run on the thread of their call, the log callback on the logging thread. They must not throw or longjmp. dollop.hpp
// passes C++ exceptions around the library.


#ifndef DOLLOP_H
#define DOLLOP_H

#include <stddef.h>
#include <stdint.h>

// `dollop_chat_options.overflow`: a prompt that no longer fits the context is `DOLLOP_CONTEXT_FULL`.
#define DOLLOP_OVERFLOW_ERROR 0

// The oldest turns are dropped; the system prompt stays.
#define DOLLOP_OVERFLOW_SLIDE 1

// `dollop_event.kind`: prefill progress, `done` of `total` tokens.
#define DOLLOP_EVENT_PREFILL 0

// A token was generated: `token`. `text` can be shown now and may be empty; for a token of the model's reasoning it is empty.
#define DOLLOP_EVENT_TOKEN 1

// The end of the text, held back until the generation ended: `text`.
#define DOLLOP_EVENT_REST 2

// The GPU failed and the CPU continues: `text` is the reason.
#define DOLLOP_EVENT_GPU_LOST 3

// `dollop_outcome.stop`: the model ended its turn.
#define DOLLOP_STOP_END_OF_TURN 0

// The answer contained a stop string.
#define DOLLOP_STOP_TEXT 1

// `max_tokens` tokens were generated.
#define DOLLOP_STOP_MAX_TOKENS 2

// A callback or another thread cancelled the generation.
#define DOLLOP_STOP_CANCELLED 3

// The KV cache is full.
#define DOLLOP_STOP_CONTEXT_FULL 4

// A reason without a number of its own.
#define DOLLOP_STOP_OTHER 99

// `max_level` of `dollop_set_log`: no messages.
#define DOLLOP_LOG_OFF 0

// Errors.
#define DOLLOP_LOG_ERROR 1

// Problems with a recovery: a GPU that failed and was replaced by the CPU, a repeated read, a repeated conversion.
#define DOLLOP_LOG_WARN 2

// Opened models, conversions.
#define DOLLOP_LOG_INFO 3

// Decisions (memory plan, instruction set, how files are read), prompts, resizes, saved and loaded sessions.
#define DOLLOP_LOG_DEBUG 4

// Every expert plane that is read or evicted.
#define DOLLOP_LOG_TRACE 5

// `level` of `dollop_engine_trim`: the cache may use the whole budget.
#define DOLLOP_TRIM_NORMAL 0

// The smallest cache that works, plus half of what the budget allows beyond it. Android: `RUNNING_MODERATE`,
// `RUNNING_LOW`, `UI_HIDDEN`; iOS: memory pressure `.warning`.
#define DOLLOP_TRIM_MODERATE 1

// An eighth instead of half. Android: `RUNNING_CRITICAL`, `BACKGROUND`; iOS: `didReceiveMemoryWarning`, pressure `.critical`.
#define DOLLOP_TRIM_CRITICAL 2

// The smallest cache that works. Every expert that a token chooses is then read. Android: `MODERATE`, `COMPLETE`;
// iOS: the app goes to the background.
#define DOLLOP_TRIM_COMPLETE 3

// `dollop_engine_options.backend`: the CPU.
#define DOLLOP_BACKEND_CPU 0

// A hardware GPU if there is one, else the CPU.
#define DOLLOP_BACKEND_AUTO 1

// The GPU that `gpu_index` selects, even a software one; an error if there is none.
#define DOLLOP_BACKEND_GPU 2

// `dollop_engine_options.precision`: the highest stored level if everything fits the budget, else adaptive.
#define DOLLOP_PRECISION_DEFAULT 0

// Every expert at `level` bits. Results do not depend on the budget.
#define DOLLOP_PRECISION_EXACT 1

// As many bits as are worth their bytes, but at least `level`.
#define DOLLOP_PRECISION_ADAPTIVE 2

// `dollop_sampling.mirostat`: off; the chain is used.
#define DOLLOP_MIROSTAT_OFF 0

// Mirostat as in the paper (Basu et al., 2020).
#define DOLLOP_MIROSTAT_V1 1

// Mirostat 2.
#define DOLLOP_MIROSTAT_V2 2

// Version of the interface in this header. It increases if the meaning or layout of an existing item changes, but not for
// new functions, new statuses, or new fields at the end of a struct. At start, compare it with `dollop_abi_version()`.
#define DOLLOP_ABI_VERSION 1

// The result of a call. Numbers are never reused. A program must treat unknown ones as failures.
enum dollop_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Success.
    DOLLOP_OK = 0,
    // The operating system reported an error: no such file, no permission, no space, a failed read.
    DOLLOP_IO = 1,
    // A file is truncated, corrupted or hostile: it contradicts itself or its format.
    DOLLOP_MALFORMED = 2,
    // A valid file or request that this version cannot run.
    DOLLOP_UNSUPPORTED = 3,
    // An option or argument is out of range. The error text names the allowed values.
    DOLLOP_INVALID = 4,
    // The model's chat template does not parse, or rejects the messages.
    DOLLOP_TEMPLATE = 5,
    // The prompt or the conversation does not fit the context.
    DOLLOP_CONTEXT_FULL = 6,
    // The memory budget is too small for this model. The error text names the smallest budget that works.
    DOLLOP_BUDGET = 7,
    // The model computed values that are not finite.
    DOLLOP_NOT_FINITE = 8,
    // A callback or another thread cancelled a call that has no partial result.
    DOLLOP_CANCELLED = 9,
    // The GPU is missing, was lost, is out of memory, or rejected a command.
    DOLLOP_DEVICE = 10,
    // An error without a number of its own.
    DOLLOP_OTHER = 99,
    // A pointer argument that must not be NULL is NULL.
    DOLLOP_NULL = 100,
    // The library has no version of the struct with this `struct_size`: it was not initialised, or the header is newer.
    DOLLOP_STRUCT_SIZE = 101,
    // A text is not UTF-8.
    DOLLOP_UTF8 = 102,
    // A handle is closed or invalid.
    DOLLOP_CLOSED = 103,
    // A handle has another type.
    DOLLOP_WRONG_HANDLE = 104,
    // Another call on this session or chat has not returned. Only one call may run at a time, and none from its own callbacks.
    DOLLOP_BUSY = 105,
    // The buffer has too few elements. Nothing was written.
    DOLLOP_TOO_SMALL = 106,
    // A callback written in Rust panicked. The session is in the same state as if the callback had stopped the call.
    DOLLOP_CALLBACK_PANIC = 107,
    // The library panicked; this is a bug. The session or chat of this call is unusable: free it.
    DOLLOP_PANIC = 108,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dollop_status dollop_status;
#else
typedef int32_t dollop_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A conversation, with its own session. One call at a time; other threads may cancel or free.
typedef struct dollop_chat dollop_chat;

// A loaded model. Any thread, any number of threads at a time.
typedef struct dollop_engine dollop_engine;

// How a memory budget is spent. Any thread, any number of threads at a time.
typedef struct dollop_plan dollop_plan;

// A session: a sequence of tokens with its KV cache. One call at a time; other threads may cancel or free.
typedef struct dollop_session dollop_session;

// Options for creating a conversation. Call `dollop_chat_options_init` first.
typedef struct dollop_chat_options {
    // Size of this struct, in bytes.
    size_t struct_size;
    // System prompt; NULL for the template's own.
    const char *system;
    // Positions of the KV cache; 0 for the number that the engine planned for.
    uint32_t context;
    // Tokens per prefill chunk; 0 for the planned number.
    uint32_t chunk;
    // A `DOLLOP_OVERFLOW_` constant.
    uint32_t overflow;
    // Always 0.
    uint32_t reserved;
} dollop_chat_options;

// A number to add to the logit of a token.
typedef struct dollop_logit_bias {
    // Token id.
    uint32_t token;
    // Finite, or minus infinity for a token that is never chosen.
    float bias;
} dollop_logit_bias;

// How tokens are chosen. Call `dollop_sampling_init` (defaults) or `dollop_engine_sampling` (the model's own
// values), then change what should differ. Each field names the value that switches its step off.
typedef struct dollop_sampling {
    // Size of this struct, in bytes.
    size_t struct_size;
    // Seed of the random sequence. The same seed, tokens and budget give the same text.
    uint64_t seed;
    // Flattens (above 1) or sharpens the distribution; 0 always takes the likeliest token.
    float temperature;
    // Keeps only the `top_k` likeliest tokens; 0 keeps all.
    uint32_t top_k;
    // Keeps only the likeliest tokens that together have this probability; 1 keeps all.
    float top_p;
    // Keeps only tokens at least this fraction as likely as the likeliest; 0 keeps all.
    float min_p;
    // Keeps the tokens whose surprise is nearest to the expected one, until together they have this probability; 1 keeps all.
    float typical_p;
    // Keeps only logits within this many standard deviations of the highest; 0 keeps all.
    float top_n_sigma;
    // How often XTC drops all but the least likely of the probable tokens, as a probability; 0 switches XTC off.
    float xtc_probability;
    // Probability from which XTC counts a token as probable; more than 0.5 switches XTC off.
    float xtc_threshold;
    // Divides the logits of recent tokens, or multiplies negative ones; 1 has no effect.
    float repeat_penalty;
    // Number of previous tokens that count as recent; 0 switches all penalties off.
    uint32_t repeat_last_n;
    // Subtracted from the logits of recent tokens; 0 has no effect.
    float presence_penalty;
    // Subtracted from the logits of recent tokens, once per occurrence; 0 has no effect.
    float frequency_penalty;
    // DRY: a token that would continue a repetition of n tokens loses multiplier * base^(n - allowed_length); 0 switches it off.
    float dry_multiplier;
    // See `dry_multiplier`.
    float dry_base;
    // DRY ignores repetitions shorter than this.
    uint32_t dry_allowed_length;
    // Number of previous tokens in which DRY looks for repetitions; 0 switches DRY off.
    uint32_t dry_last_n;
    // A `DOLLOP_MIROSTAT_` constant. Mirostat replaces the whole chain except the temperature.
    uint32_t mirostat;
    // The surprise per token that mirostat aims at, in bits.
    float mirostat_tau;
    // Learning rate of mirostat.
    float mirostat_eta;
    // Elements of `dry_breakers`, at most 64.
    uint32_t dry_breaker_count;
    // Texts that DRY matches no repetition across; NULL for the model's own. For none: not NULL, and a count of 0.
    const char *const *dry_breakers;
    // Added to the logits of single tokens before all other steps; NULL for the model's own. For none, as above.
    const struct dollop_logit_bias *logit_bias;
    // Elements of `logit_bias`, at most 65536.
    size_t logit_bias_count;
    // The steps in order, such as "penalties;top_k;top_p;temperature"; NULL for the model's own.
    const char *chain;
} dollop_sampling;

// An event of a generation. Programs must ignore unknown kinds.
typedef struct dollop_event {
    // A `DOLLOP_EVENT_` constant.
    uint32_t kind;
    // The token's id.
    uint32_t token;
    // Whole UTF-8 characters, NUL-terminated; never NULL. Valid during the callback.
    const char *text;
    // Bytes of `text`, without the terminating NUL.
    size_t text_len;
    // Prompt tokens computed so far.
    uint64_t done;
    // Prompt tokens to compute in all.
    uint64_t total;
} dollop_event;

// Receives events, on the thread that generates. Returns 0 to continue, anything else to stop: the generation then ends
// with `DOLLOP_STOP_CANCELLED`, and the callback is not called again. May call any function of this library. On the
// generating session or chat, all but `_cancel` and `_free` return `DOLLOP_BUSY`. Must not throw or `longjmp`.
typedef int32_t (*dollop_event_callback)(const struct dollop_event *event, void *user_data);

// Options for generating. Call `dollop_generate_options_init`, then change what should differ. Pointers must stay
// valid until the call with these options returns.
typedef struct dollop_generate_options {
    // Size of this struct, in bytes.
    size_t struct_size;
    // The most tokens to generate, by default 512; 0 only processes the prompt.
    uint32_t max_tokens;
    // If not 0, continues after an end-of-turn token.
    int32_t ignore_eos;
    // How tokens are chosen; NULL for the model's own sampling.
    const struct dollop_sampling *sampling;
    // Stop strings: texts that end the answer and are not part of it; NULL for none.
    const char *const *stop;
    // Elements of `stop`.
    size_t stop_count;
    // Target speed in tokens per second, if experts are streamed with adaptive precision: the precision then
    // follows it, and results depend on the machine's speed. 0 for none.
    double target_tps;
    // Receives events; NULL for none.
    dollop_event_callback on_event;
    // Passed to `on_event`.
    void *user_data;
    // JSON Schema, as a text: the answer is JSON that is valid under it; NULL for any answer. At most one of
    // `json_schema`, `regex` and `grammar` may be set.
    const char *json_schema;
    // Regular expression that the whole answer must match; NULL for any answer.
    const char *regex;
    // Grammar in llguidance's dialect of Lark that must derive the answer from `start`; NULL for any answer.
    const char *grammar;
} dollop_generate_options;

// The result of a generation.
typedef struct dollop_outcome {
    // Size of this struct, in bytes.
    size_t struct_size;
    // A `DOLLOP_STOP_` constant.
    uint32_t stop;
    // Tokens of the prompt.
    uint32_t prompt_tokens;
    // Prompt tokens that were already in the KV cache.
    uint32_t reused_tokens;
    // Generated tokens, without the end-of-turn token.
    uint32_t generated_tokens;
    // Seconds spent on the other prompt tokens.
    double prefill_seconds;
    // Seconds spent on the generated tokens.
    double decode_seconds;
} dollop_outcome;

// One message of a conversation.
typedef struct dollop_message {
    // "system", "user", "assistant", or another role that the template supports.
    const char *role;
    // The message's text.
    const char *content;
} dollop_message;

// The numbers of a session.
typedef struct dollop_session_info {
    // Size of this struct, in bytes.
    size_t struct_size;
    // Positions of the KV cache.
    uint64_t context;
    // Tokens in the session.
    uint64_t tokens;
    // Tokens computed since the session was created. Reused tokens do not count.
    uint64_t processed_tokens;
} dollop_session_info;

// A GPU.
typedef struct dollop_device {
    // The value of `dollop_engine_options.gpu_index` that selects it.
    uint32_t index;
    // 1 if kernels can run on it.
    uint32_t usable;
    // 1 for a software GPU, which computes on the CPU.
    uint32_t software;
    // Always 0.
    uint32_t reserved;
    // The largest buffer that a kernel can read, in bytes.
    uint64_t max_binding_bytes;
    // Its name: NUL-terminated UTF-8, cut if longer.
    char name[128];
    // Vulkan, Metal or Dx12; NUL-terminated.
    char api[16];
} dollop_device;

// The progress of a long call.
typedef struct dollop_progress {
    // The current stage, for display. Valid during the callback.
    const char *stage;
    // Bytes done.
    uint64_t done;
    // Total bytes.
    uint64_t total;
} dollop_progress;

// Receives progress, on the thread that opens the model. Returns 0 to continue, anything else to cancel: the call
// then fails with `DOLLOP_CANCELLED`. May call any function of this library. Must not throw or `longjmp`.
typedef int32_t (*dollop_progress_callback)(const struct dollop_progress *progress, void *user_data);

// Options for opening a model. Call `dollop_engine_options_init`, then change what should differ. Pointers must
// stay valid until the call with these options returns.
typedef struct dollop_engine_options {
    // Size of this struct, in bytes.
    size_t struct_size;
    // A `DOLLOP_BACKEND_` constant; by default the CPU.
    uint32_t backend;
    // Index of the GPU in `dollop_devices`; -1 for the first usable one.
    int32_t gpu_index;
    // Threads that compute, including the caller's; 0 for one per core.
    uint32_t threads;
    // Positions of the KV cache that the budget must hold; 0 for the model's context, at most 4096.
    uint32_t context;
    // Tokens per prefill chunk; 0 for 512 or, if experts are streamed, for what the budget allows, at most 2048.
    uint32_t chunk;
    // A `DOLLOP_PRECISION_` constant.
    uint32_t precision;
    // Bits of that precision: 2, 3, 4, 6 or 8. With adaptive precision 0 means 3.
    uint32_t level;
    // With adaptive precision, the bits of an expert of average gate weight, 2 to 8; 0 means 4.
    float quality;
    // Memory budget in bytes, for the engine and one session together. Experts are streamed if they do not fit it.
    // 0 for no limit: everything is resident.
    uint64_t memory_bytes;
    // Folder for converted models. Each GGUF file or Hugging Face folder is converted into it once. If NULL, only
    // Dollop files can be opened; others are `DOLLOP_UNSUPPORTED`.
    const char *cache_folder;
    // Folder for compiled GPU kernels: read when the model is opened, written after new ones were compiled; NULL for none.
    const char *pipelines_folder;
    // Experts per token, if fewer than the model's; 0 for the model's. Changes results.
    uint32_t experts_used;
    // Experts to prefetch on a guess of the next layer's choice; 0 for none. Does not change results.
    uint32_t lookahead;
    // Skips an expert that is not resident if its share of the token's gate weights is below this; 0 for never. Changes results.
    float skip_cold;
    // Raises the rank of resident experts by this fraction of the range of their scores; 0 for none. Changes results.
    float cache_prior;
    // Reads in flight; 0 for the number that measures best when the model is opened.
    uint32_t lanes;
    // 1 to stream experts even if all fit `memory_bytes`, so that the engine can give memory back later.
    uint32_t always_stream;
    // Receives the progress of a conversion; NULL for none.
    dollop_progress_callback on_progress;
    // Passed to `on_progress`.
    void *progress_user_data;
} dollop_engine_options;

// A model's dimensions and sizes. `dollop_engine_info_json` also has its names.
typedef struct dollop_model_info {
    // Size of this struct, in bytes.
    size_t struct_size;
    // Transformer blocks.
    uint32_t layers;
    // Experts per routed layer; 0 for a dense model.
    uint32_t experts;
    // Experts per token.
    uint32_t experts_used;
    // Hidden width of a routed expert; 0 for a dense model.
    uint32_t expert_width;
    // The longest context that the model was trained for, in tokens.
    uint32_t context;
    // Tokens in the vocabulary: token ids are below this, and an array of logits has this many elements.
    uint32_t vocab;
    // Token at the beginning of a text; -1 for none.
    int64_t bos;
    // Token at the end of a text; -1 for none.
    int64_t eos;
    // Weights in all matrices.
    uint64_t parameters;
    // Weights in the matrices that one token uses.
    uint64_t active_parameters;
    // Bytes of all weights at the level in use.
    uint64_t bytes;
    // Bytes of the weights that one token reads.
    uint64_t active_bytes;
    // Threads that compute.
    uint32_t threads;
    // 1 if the model has a chat template.
    uint32_t has_chat_template;
} dollop_model_info;

// Receives one message: its level (a `DOLLOP_LOG_` constant), the module it comes from, such as "dollop::session", and
// one line to display. The texts are valid during the callback. It runs on the logging thread, on several at a time. It
// must not throw or `longjmp`. Messages that the library logs on this thread during the callback are dropped.
typedef void (*dollop_log_callback)(uint32_t level,
                                    const char *target,
                                    const char *message,
                                    void *user_data);

// How a memory budget is spent, in bytes.
typedef struct dollop_plan_info {
    // Size of this struct, in bytes.
    size_t struct_size;
    // The memory budget; 0 for no limit.
    uint64_t budget_bytes;
    // The sum of all parts.
    uint64_t total_bytes;
    // The smallest budget that works.
    uint64_t smallest_bytes;
    // Program, tokenizer, tables, and buffers for reading embedding rows.
    uint64_t overhead_bytes;
    // Weights that every token uses.
    uint64_t dense_bytes;
    // KV cache of one session.
    uint64_t kv_bytes;
    // Activations and other scratch of one session.
    uint64_t scratch_bytes;
    // Memory for experts: the cache, or all of them.
    uint64_t expert_bytes;
    // Host memory through which streamed experts pass on their way to a GPU.
    uint64_t staging_bytes;
    // Positions of the KV cache.
    uint32_t context;
    // Tokens per prefill chunk.
    uint32_t chunk;
    // 1 if experts are streamed, 0 if all are resident.
    uint32_t streaming;
    // 1 if a GPU computes.
    uint32_t gpu;
    // 1 if experts are resident at fewer bits than the file stores.
    uint32_t lowered;
    // Number of levels for `dollop_plan_level_at`.
    uint32_t level_count;
} dollop_plan_info;

// What one level of experts means under a plan.
typedef struct dollop_plan_level {
    // Size of this struct, in bytes.
    size_t struct_size;
    // Bits of the level.
    uint32_t bits;
    // The share of the experts at this level that the memory holds, from 0 to 1.
    double resident;
    // Bytes of all experts at this level.
    uint64_t expert_bytes;
    // Bytes of the experts that one token uses.
    uint64_t touched_bytes;
    // Bytes that one token reads if all experts are equally likely.
    uint64_t read_bytes;
} dollop_plan_level;

// Options for creating a session. Call `dollop_session_options_init` first.
typedef struct dollop_session_options {
    // Size of this struct, in bytes.
    size_t struct_size;
    // Positions of the KV cache; 0 for the number that the engine planned for.
    uint32_t context;
    // Tokens per prefill chunk; 0 for the planned number. From 32 on, results do not depend on it.
    uint32_t chunk;
} dollop_session_options;

// Counters of an engine since it was opened. Those of streaming are 0 if all experts are resident, those of a GPU
// if the CPU computes.
typedef struct dollop_stats {
    // Size of this struct, in bytes.
    size_t struct_size;
    // 1 if experts are streamed or refined.
    uint32_t streaming;
    // 1 if a GPU computes.
    uint32_t gpu;
    // Expert planes that layers needed.
    uint64_t planes_wanted;
    // Needed planes that were resident.
    uint64_t planes_hit;
    // Bytes read because a layer needed them.
    uint64_t bytes_wanted;
    // Bytes prefetched.
    uint64_t bytes_ahead;
    // Bytes read for embedding rows that are not held in memory.
    uint64_t bytes_embedding;
    // Planes above the base that were evicted.
    uint64_t downgrades;
    // Base planes that were evicted.
    uint64_t evictions;
    // Reads that were repeated.
    uint64_t retries;
    // Nanoseconds that computation waited for reads.
    uint64_t wait_ns;
    // Nanoseconds spent computing experts.
    uint64_t compute_ns;
    // Mean bits of the computed experts, weighted by gate; 0 before the first token.
    double mean_bits;
    // `planes_hit` divided by `planes_wanted`; 1 before the first token.
    double hit_rate;
    // Bytes now allocated on the GPU.
    uint64_t gpu_bytes;
    // Kernels launched on the GPU.
    uint64_t gpu_dispatches;
    // Waits for a result of the GPU.
    uint64_t gpu_readbacks;
} dollop_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The reason for the last failed call on this thread, as one line to display; "" if none failed. Successful calls
// do not change it. The text is valid until the next call on this thread fails.
const char *dollop_last_error(void);

// Sets all fields of `options` to their defaults. `struct_size` must be `sizeof *options`. Any thread.
dollop_status dollop_chat_options_init(struct dollop_chat_options *options,
                                       size_t struct_size);

// Creates a conversation with a new session. `options` may be NULL. `DOLLOP_UNSUPPORTED` if the model has no
// tokenizer or chat template. Writes a new handle to `*chat`; close it with `dollop_chat_free`. Any thread.
dollop_status dollop_chat_new(const struct dollop_engine *engine,
                              const struct dollop_chat_options *options,
                              struct dollop_chat **chat);

// Closes the handle. NULL does nothing. Any thread. A running generation is cancelled and keeps what it needs. It
// calls its callback at most once more, before its own call returns.
dollop_status dollop_chat_free(struct dollop_chat *chat);

// Cancels the running generation of this chat. Its call returns `DOLLOP_OK` with `DOLLOP_STOP_CANCELLED`; the
// answer so far stays in the conversation. Does nothing if none runs. Any thread, also from a callback.
dollop_status dollop_chat_cancel(const struct dollop_chat *chat);

// Adds `message` as the user's turn and generates the answer. `options` may be NULL. `answer`, if not NULL,
// receives the text: free it with `dollop_text_free`. `outcome`, if not NULL, is filled; its `struct_size` must be
// set. Blocks. One call at a time, else `DOLLOP_BUSY`. After a failure the conversation is unchanged.
dollop_status dollop_chat_send(const struct dollop_chat *chat,
                               const char *message,
                               const struct dollop_generate_options *options,
                               char **answer,
                               struct dollop_outcome *outcome);

// Removes the last answer and answers the same message again. Otherwise as `dollop_chat_send`.
dollop_status dollop_chat_regenerate(const struct dollop_chat *chat,
                                     const struct dollop_generate_options *options,
                                     char **answer,
                                     struct dollop_outcome *outcome);

// Clears the conversation; the system prompt stays. One call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_chat_reset(const struct dollop_chat *chat);

// Replaces the conversation and its system prompt by `count` messages. One call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_chat_set_messages(const struct dollop_chat *chat,
                                       const struct dollop_message *list,
                                       size_t count);

// The conversation as a JSON array of objects with `role` and `content`. Free `*json` with `dollop_text_free`. One
// call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_chat_messages_json(const struct dollop_chat *chat,
                                        char **json);

// Sets the template's variables besides the messages, as a JSON object such as {"enable_thinking": false}. It
// replaces those set before. One call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_chat_set_variables(const struct dollop_chat *chat,
                                        const char *json);

// Sets the local time for templates that use it, in seconds since 1970 as if the local clock showed UTC. The
// library reads no clock. One call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_chat_set_time(const struct dollop_chat *chat,
                                   uint64_t seconds);

// Fills `info` with the numbers of the chat's session. `info->struct_size` must be set. One call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_chat_get(const struct dollop_chat *chat,
                              struct dollop_session_info *info);

// Renders `count` messages with the model's chat template. If `add_generation_prompt` is not 0, the text ends with
// the beginning of an answer. Free `*text` with `dollop_text_free`. Any thread.
dollop_status dollop_engine_render(const struct dollop_engine *engine,
                                   const struct dollop_message *list,
                                   size_t count,
                                   int32_t add_generation_prompt,
                                   char **text);

// Lists the GPUs. Writes their number to `*count`, which may be 0. Writes the GPUs to `devices`, which has room
// for `capacity` elements, unless it is NULL. Queries the drivers, which may take a second. Any thread.
dollop_status dollop_devices(struct dollop_device *devices,
                             size_t capacity,
                             size_t *count);

// As `dollop_devices`, but with more fields and as a JSON array. Free `*json` with `dollop_text_free`. Any thread.
dollop_status dollop_devices_json(char **json);

// Opens a model: a Dollop file. With `cache_folder` also a GGUF file (any part of a split one) or a Hugging Face folder,
// which is converted once. `options` may be NULL for the defaults. Writes a new handle to `*engine`; close it with
// `dollop_engine_free`. Blocks until the model is open, for minutes if it converts; call it on a thread that may block.
dollop_status dollop_engine_open(const char *path,
                                 const struct dollop_engine_options *options,
                                 struct dollop_engine **engine);

// Closes the handle. NULL does nothing. Sessions, chats and plans of the engine stay valid, and the model stays in
// memory until they are freed too. Any thread.
dollop_status dollop_engine_free(struct dollop_engine *engine);

// Opens a Dollop file that is part of an open file: `length` bytes from `offset`, a multiple of 64; a `length` of
// 0 means up to the end. For Android's assets and documents, and for sandboxes. The descriptor is duplicated; the
// caller may close its own at any time. Other model formats must be converted first. `DOLLOP_UNSUPPORTED` on
// Windows, which has no descriptors. Otherwise as `dollop_engine_open`.
dollop_status dollop_engine_open_file(int descriptor,
                                      uint64_t offset,
                                      uint64_t length,
                                      const struct dollop_engine_options *options,
                                      struct dollop_engine **engine);

// Plans the memory for `dollop_engine_open_file` with the same arguments. Loads nothing. Otherwise as
// `dollop_plan_new`.
dollop_status dollop_plan_new_file(int descriptor,
                                   uint64_t offset,
                                   uint64_t length,
                                   const struct dollop_engine_options *options,
                                   struct dollop_plan **plan);

// Sets all fields of `options` to their defaults. `struct_size` must be `sizeof *options`. Any thread.
dollop_status dollop_generate_options_init(struct dollop_generate_options *options,
                                           size_t struct_size);

// Initialises `outcome`. `struct_size` must be `sizeof *outcome`. Any thread.
dollop_status dollop_outcome_init(struct dollop_outcome *outcome, size_t struct_size);

// The number of open handles in this process. Tests use it to find leaks. Any thread.
size_t dollop_open_handles(void);

// Initialises `info`. `struct_size` must be `sizeof *info`. Any thread.
dollop_status dollop_model_info_init(struct dollop_model_info *info, size_t struct_size);

// Fills `info`. `info->struct_size` must be set. Any thread.
dollop_status dollop_engine_info(const struct dollop_engine *engine,
                                 struct dollop_model_info *info);

// As `dollop_engine_info`, but with more fields and as a JSON object: also name, architecture, mode and processor. `note`
// gives the reason if the CPU computes instead of a preferred or failed GPU. Free `*json` with `dollop_text_free`. Any thread.
dollop_status dollop_engine_info_json(const struct dollop_engine *engine,
                                      char **json);

// Sets the callback for log messages up to `max_level` (a `DOLLOP_LOG_` constant). It replaces the previous one;
// NULL removes it. When this returns, the previous callback is not running and will not be called again, so its
// `user_data` may be freed. The caller must hold no lock that the callback takes. Any thread, but `DOLLOP_BUSY`
// from the callback itself. `DOLLOP_UNSUPPORTED` if the program has set another logger for the Rust crate `log`.
dollop_status dollop_set_log(dollop_log_callback callback,
                             void *user_data,
                             uint32_t max_level);

// Sets another memory budget, in bytes. If experts are streamed, their cache shrinks or grows to fit. Memory
// beyond the budget is freed before this returns; `given`, if not NULL, receives the number of freed bytes. Text
// at exact precision stays the same. `DOLLOP_BUDGET` if the budget is too small; nothing changes then.
// `DOLLOP_UNSUPPORTED` if the cache is on a GPU. Any thread, also during a generation and from its callback.
dollop_status dollop_engine_set_memory(const struct dollop_engine *engine,
                                       uint64_t bytes,
                                       uint64_t *given);

// Shrinks or grows the expert cache in response to the system's memory warnings; the budget stays. `level`, a
// `DOLLOP_TRIM_` constant, sets the size of the cache, so the same level twice has no further effect. `given`, if not
// NULL, receives the number of bytes freed to the system. Any thread, also during a generation and from its callback.
dollop_status dollop_engine_trim(const struct dollop_engine *engine,
                                 uint32_t level,
                                 uint64_t *given);

// Sets all fields of `options` to their defaults. `struct_size` must be `sizeof *options`. Any thread.
dollop_status dollop_engine_options_init(struct dollop_engine_options *options,
                                         size_t struct_size);

// Initialises `info`. `struct_size` must be `sizeof *info`. Any thread.
dollop_status dollop_plan_info_init(struct dollop_plan_info *info, size_t struct_size);

// Initialises `level`. `struct_size` must be `sizeof *level`. Any thread.
dollop_status dollop_plan_level_init(struct dollop_plan_level *level, size_t struct_size);

// Plans the memory for `dollop_engine_open` with the same arguments. Loads nothing, but converts a model of
// another format as that call would. `DOLLOP_BUDGET` if the budget is too small. Writes a new handle to `*plan`;
// close it with `dollop_plan_free`.
dollop_status dollop_plan_new(const char *path,
                              const struct dollop_engine_options *options,
                              struct dollop_plan **plan);

// The plan of an open model. Writes a new handle to `*plan`; close it with `dollop_plan_free`. Any thread.
dollop_status dollop_engine_plan(const struct dollop_engine *engine,
                                 struct dollop_plan **plan);

// Closes the handle. NULL does nothing. Any thread.
dollop_status dollop_plan_free(struct dollop_plan *plan);

// Fills `info`. `info->struct_size` must be set. Any thread.
dollop_status dollop_plan_get(const struct dollop_plan *plan, struct dollop_plan_info *info);

// Fills `level` with the level at `index`, lowest first. `level->struct_size` must be set. Any thread.
dollop_status dollop_plan_level_at(const struct dollop_plan *plan,
                                   size_t index,
                                   struct dollop_plan_level *level);

// The whole plan as a JSON object. Free `*json` with `dollop_text_free`. Any thread.
dollop_status dollop_plan_json(const struct dollop_plan *plan, char **json);

// Sets all fields of `sampling` to their defaults. `struct_size` must be `sizeof *sampling`. Any thread.
dollop_status dollop_sampling_init(struct dollop_sampling *sampling,
                                   size_t struct_size);

// Fills `sampling` with the values that the model's file recommends, and with defaults where it has none.
// `sampling->struct_size` must be set. Any thread.
dollop_status dollop_engine_sampling(const struct dollop_engine *engine,
                                     struct dollop_sampling *sampling);

// Writes the session to a file: its tokens, and the keys and values computed for them. An existing file is
// replaced only when the new one is complete and on disk. `bytes`, if not NULL, receives the file's size. One call
// at a time, else `DOLLOP_BUSY`. After a failure the session and the old file are unchanged.
dollop_status dollop_session_save(const struct dollop_session *session,
                                  const char *path,
                                  uint64_t *bytes);

// Loads a session that `dollop_session_save` or `dollop_chat_save` wrote, also in another process. On the same
// backend and at exact precision its logits are the same as without saving. The context is that of `options`,
// which may be NULL. `DOLLOP_MALFORMED` for a damaged file, `DOLLOP_UNSUPPORTED` for another model, precision or
// version, `DOLLOP_CONTEXT_FULL` if the tokens do not fit. Writes a new handle to `*session`. Any thread.
dollop_status dollop_session_load(const struct dollop_engine *engine,
                                  const char *path,
                                  const struct dollop_session_options *options,
                                  struct dollop_session **session);

// Copies a session, to continue one prefix in several ways. Computes nothing. Writes a new handle to `*fork`;
// close it with `dollop_session_free`. One call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_session_fork(const struct dollop_session *session,
                                  struct dollop_session **fork);

// Writes the conversation to a file: its session, its messages with the system prompt, the overflow option, and
// the template's variables, but not the time. Otherwise as `dollop_session_save`.
dollop_status dollop_chat_save(const struct dollop_chat *chat,
                               const char *path,
                               uint64_t *bytes);

// Loads a conversation that `dollop_chat_save` wrote. `DOLLOP_MALFORMED` for a session without a conversation.
// Otherwise as `dollop_session_load`. Writes a new handle to `*chat`; close it with `dollop_chat_free`.
dollop_status dollop_chat_load(const struct dollop_engine *engine,
                               const char *path,
                               const struct dollop_session_options *options,
                               struct dollop_chat **chat);

// Sets all fields of `options` to their defaults. `struct_size` must be `sizeof *options`. Any thread.
dollop_status dollop_session_options_init(struct dollop_session_options *options,
                                          size_t struct_size);

// Creates an empty session and allocates all its memory. `options` may be NULL. Writes a new handle to `*session`;
// close it with `dollop_session_free`. Any thread.
dollop_status dollop_session_new(const struct dollop_engine *engine,
                                 const struct dollop_session_options *options,
                                 struct dollop_session **session);

// Closes the handle. NULL does nothing. Any thread. A running generation is cancelled and keeps what it needs. It
// calls its callback at most once more, before its own call returns.
dollop_status dollop_session_free(struct dollop_session *session);

// Cancels the running generation of this session. Its call returns `DOLLOP_OK` with `DOLLOP_STOP_CANCELLED`; the
// generated tokens stay. Does nothing if none runs. Any thread, also from a callback.
dollop_status dollop_session_cancel(const struct dollop_session *session);

// Processes the prompt `ids` and continues it. Tokens of the session that the prompt begins with are reused, the others
// are dropped. `options` may be NULL. `text`, if not NULL, receives the answer: free it with `dollop_text_free`.
// `outcome`, if not NULL, is filled; its `struct_size` must be set. Blocks. One call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_session_generate(const struct dollop_session *session,
                                      const uint32_t *ids,
                                      size_t count,
                                      const struct dollop_generate_options *options,
                                      char **text,
                                      struct dollop_outcome *outcome);

// As `dollop_session_generate`, but the prompt is a text. The tokens that the model wants around a text (BOS, EOS)
// are added. The chat template is not used.
dollop_status dollop_session_complete(const struct dollop_session *session,
                                      const char *prompt,
                                      const struct dollop_generate_options *options,
                                      char **text,
                                      struct dollop_outcome *outcome);

// Appends `ids` to the session and writes the logits of the next token to `logits`: unnormalised log probabilities
// by token id. `capacity` must be at least `dollop_model_info.vocab`, else `DOLLOP_TOO_SMALL`. Blocks. One call at
// a time, else `DOLLOP_BUSY`. After a failure the session is unchanged, but empty after `DOLLOP_NOT_FINITE`.
dollop_status dollop_session_logits(const struct dollop_session *session,
                                    const uint32_t *ids,
                                    size_t count,
                                    float *logits,
                                    size_t capacity);

// Drops all but the first `count` tokens of the session. If there are fewer, does nothing. One call at a time,
// else `DOLLOP_BUSY`.
dollop_status dollop_session_rewind(const struct dollop_session *session,
                                    size_t count);

// The tokens of the session. Writes their number to `*count`. Writes the ids to `ids`, which has room for
// `capacity` elements, unless it is NULL. One call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_session_tokens(const struct dollop_session *session,
                                    uint32_t *ids,
                                    size_t capacity,
                                    size_t *count);

// Initialises `info`. `struct_size` must be `sizeof *info`. Any thread.
dollop_status dollop_session_info_init(struct dollop_session_info *info, size_t struct_size);

// Fills `info`. `info->struct_size` must be set. One call at a time, else `DOLLOP_BUSY`.
dollop_status dollop_session_get(const struct dollop_session *session,
                                 struct dollop_session_info *info);

// Initialises `stats`. `struct_size` must be `sizeof *stats`. Any thread.
dollop_status dollop_stats_init(struct dollop_stats *stats, size_t struct_size);

// Fills `stats`. `stats->struct_size` must be set. Any thread, also during a generation.
dollop_status dollop_engine_stats(const struct dollop_engine *engine, struct dollop_stats *stats);

// All counters as a JSON object: `stream` and `gpu`, null if unused, and the number of the router's choices that
// were dropped or redirected. Free `*json` with `dollop_text_free`. Any thread, also during a generation.
dollop_status dollop_engine_stats_json(const struct dollop_engine *engine,
                                       char **json);

// The name of a status, such as "DOLLOP_BUDGET"; "unknown status" for any other number. Any thread. The text is never freed.
const char *dollop_status_name(int32_t status);

// Frees a text that a function of this library wrote to a `char **`. NULL does nothing. Use it for no other
// memory, and nothing else for these texts. Any thread.
void dollop_text_free(char *text);

// Converts text to token ids. If `add_special` is not 0, this adds the tokens that the model wants around a text
// (BOS, EOS). Writes the number of ids to `*count`. Writes the ids to `ids`, which has room for `capacity`
// elements, unless it is NULL. `DOLLOP_TOO_SMALL` if there are more ids than that. Any thread.
dollop_status dollop_engine_tokenize(const struct dollop_engine *engine,
                                     const char *text,
                                     int32_t add_special,
                                     uint32_t *ids,
                                     size_t capacity,
                                     size_t *count);

// Converts `count` token ids to text. If `skip_special` is not 0, control tokens are left out. `DOLLOP_INVALID`
// for ids outside the vocabulary. Free `*text` with `dollop_text_free`. Any thread.
dollop_status dollop_engine_detokenize(const struct dollop_engine *engine,
                                       const uint32_t *ids,
                                       size_t count,
                                       int32_t skip_special,
                                       char **text);

// The `DOLLOP_ABI_VERSION` of the loaded library. Any thread.
uint32_t dollop_abi_version(void);

// The library's version, such as "0.1.0". Any thread. The text is never freed.
const char *dollop_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DOLLOP_H */
