// dollop.h: the C interface of Dollop, which runs Mixture-of-Experts language models.
//
// Generated from ffi/src by cbindgen; do not edit. docs/embedding.md shows how to use it.
//
// Statuses. Every function that can fail returns a dollop_status; DOLLOP_OK is 0. dollop_last_error() has a text for people.
// After a failure outputs are as they were: outputs are written last.
//
// Handles. dollop_engine, dollop_session, dollop_chat and dollop_plan are opaque. Whoever makes one frees it with the function
// of its type; freeing NULL does nothing. A handle that is closed or of another type is found out (DOLLOP_CLOSED,
// DOLLOP_WRONG_HANDLE). They do not depend on each other: an engine may be freed before its sessions.
//
// Pointers. A pointer argument is NULL or points to what its type says while the call lasts; nothing is kept after it.
// Texts are UTF-8 and end with a NUL, and a NUL in a text that is handed out becomes U+FFFD; paths are as the system has them. Arrays that a count of 0 belongs to may be NULL.
//
// Structs begin with struct_size. The function NAME_init(&s, sizeof s) sets it and gives all fields their defaults: call it
// first, then set what should differ. Structs grow at their end, so programs work with newer libraries unchanged.
//
// Threads. Engines and plans may be used from any thread at a time. A session or chat does one call at a time, from any
// thread; a second one meanwhile is DOLLOP_BUSY. Only _cancel and _free may be called during a generation, from any thread.
//
// Callbacks run on the thread of the call that they belong to, the log's on whichever thread logs. They must not throw or longjmp: dollop.hpp carries C++
// exceptions past the library.


#ifndef DOLLOP_H
#define DOLLOP_H

#include <stddef.h>
#include <stdint.h>

// `dollop_chat_options.overflow`: a conversation that outgrows the context is `DOLLOP_CONTEXT_FULL`.
#define DOLLOP_OVERFLOW_ERROR 0

// The oldest turns are forgotten; the system prompt stays.
#define DOLLOP_OVERFLOW_SLIDE 1

// `dollop_event.kind`: a part of the prompt was read: `done` of `total` tokens.
#define DOLLOP_EVENT_PREFILL 0

// A token was generated: `token`, and in `text` what can be shown by now, perhaps nothing. A token of a model's reasoning has none.
#define DOLLOP_EVENT_TOKEN 1

// The end of the text that was held back until now: `text`.
#define DOLLOP_EVENT_REST 2

// The GPU failed and the CPU goes on: `text` says why.
#define DOLLOP_EVENT_GPU_LOST 3

// `dollop_outcome.stop`: the model ended its turn.
#define DOLLOP_STOP_END_OF_TURN 0

// A stop text was met.
#define DOLLOP_STOP_TEXT 1

// `max_tokens` were generated.
#define DOLLOP_STOP_MAX_TOKENS 2

// A callback or another thread asked for it.
#define DOLLOP_STOP_CANCELLED 3

// The KV cache is full.
#define DOLLOP_STOP_CONTEXT_FULL 4

// A reason that has no number yet.
#define DOLLOP_STOP_OTHER 99

// `max_level` of `dollop_set_log`: nothing.
#define DOLLOP_LOG_OFF 0

// What failed.
#define DOLLOP_LOG_ERROR 1

// What went wrong and was put right: a GPU that the CPU replaces, a read that is tried again, a conversion that is made again.
#define DOLLOP_LOG_WARN 2

// Models that were opened, conversions.
#define DOLLOP_LOG_INFO 3

// What was chosen: the memory plan, instructions, how storage is read; prompts, resizes, sessions saved and restored.
#define DOLLOP_LOG_DEBUG 4

// Every plane of an expert that is read or gives way.
#define DOLLOP_LOG_TRACE 5

// A level of `dollop_engine_trim`: the whole budget may be used again.
#define DOLLOP_TRIM_NORMAL 0

// Half of the cache beyond the smallest that works. Android: `RUNNING_MODERATE`, `RUNNING_LOW`, `UI_HIDDEN`; iOS: memory
// pressure `.warning`.
#define DOLLOP_TRIM_MODERATE 1

// An eighth of that. Android: `RUNNING_CRITICAL`, `BACKGROUND`; iOS: `didReceiveMemoryWarning`, memory pressure `.critical`.
#define DOLLOP_TRIM_CRITICAL 2

// The smallest that works: every expert that a token chooses is read. Android: `MODERATE`, `COMPLETE`; iOS: the app goes to
// the background.
#define DOLLOP_TRIM_COMPLETE 3

// `dollop_engine_options.backend`: the CPU.
#define DOLLOP_BACKEND_CPU 0

// A GPU if there is one that is no software, else the CPU.
#define DOLLOP_BACKEND_AUTO 1

// The GPU that `gpu_index` names, or an error.
#define DOLLOP_BACKEND_GPU 2

// `dollop_engine_options.precision`: the highest stored level if everything fits the budget, else adaptive.
#define DOLLOP_PRECISION_DEFAULT 0

// Every expert at `level` bits: results do not depend on the budget.
#define DOLLOP_PRECISION_EXACT 1

// As many bits as are worth their bytes, but at least `level`.
#define DOLLOP_PRECISION_ADAPTIVE 2

// `dollop_sampling.mirostat`: the chain chooses.
#define DOLLOP_MIROSTAT_OFF 0

// Mirostat as in the paper.
#define DOLLOP_MIROSTAT_V1 1

// Mirostat 2.
#define DOLLOP_MIROSTAT_V2 2

// Version of the interface in this header. It grows when something existing changes its meaning or layout; new functions,
// statuses and fields at the end of structs do not change it. Compare with `dollop_abi_version()` at start.
#define DOLLOP_ABI_VERSION 1

// What a call returns. Numbers are never reused; a program must take unknown ones as failures.
enum dollop_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // The call did what it says.
    DOLLOP_OK = 0,
    // The operating system refused: no such file, no permission, no space, a read that failed.
    DOLLOP_IO = 1,
    // A file contradicts itself or its format: truncated, corrupted or hostile.
    DOLLOP_MALFORMED = 2,
    // A sound file or request that this version cannot run.
    DOLLOP_UNSUPPORTED = 3,
    // An option or argument is out of its range; the text says what would do.
    DOLLOP_INVALID = 4,
    // The model's chat template does not parse, or refuses the messages.
    DOLLOP_TEMPLATE = 5,
    // The prompt or the conversation does not fit the context.
    DOLLOP_CONTEXT_FULL = 6,
    // The memory budget cannot work for this model; the text names the smallest that does.
    DOLLOP_BUDGET = 7,
    // The model computes values that are no finite numbers.
    DOLLOP_NOT_FINITE = 8,
    // A callback or another thread cancelled a call that has nothing to return.
    DOLLOP_CANCELLED = 9,
    // The GPU is missing, was lost, is out of memory or refused a command.
    DOLLOP_DEVICE = 10,
    // An error of the library that has no number yet.
    DOLLOP_OTHER = 99,
    // A pointer argument that must not be NULL is NULL.
    DOLLOP_NULL = 100,
    // A struct's `struct_size` is none that this library knows: it was not initialised, or the header is newer.
    DOLLOP_STRUCT_SIZE = 101,
    // A text is not UTF-8.
    DOLLOP_UTF8 = 102,
    // A handle is closed, or never was one.
    DOLLOP_CLOSED = 103,
    // A handle is one of another type.
    DOLLOP_WRONG_HANDLE = 104,
    // Another call on this session or chat has not returned: one thread at a time, and none from its own callbacks.
    DOLLOP_BUSY = 105,
    // The buffer has too few elements; nothing was written.
    DOLLOP_TOO_SMALL = 106,
    // A callback written in Rust panicked. The session goes on as if the callback had asked to stop.
    DOLLOP_CALLBACK_PANIC = 107,
    // The library panicked: a bug. The session or chat of the call is unusable; free it.
    DOLLOP_PANIC = 108,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dollop_status dollop_status;
#else
typedef int32_t dollop_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A conversation on a timeline of its own. One call at a time; another thread may cancel or free.
typedef struct dollop_chat dollop_chat;

// A loaded model. Any thread, any number of threads at a time.
typedef struct dollop_engine dollop_engine;

// How a memory budget is spent. Any thread, any number of threads at a time.
typedef struct dollop_plan dollop_plan;

// One timeline of a model: tokens and their KV cache. One call at a time; another thread may cancel or free.
typedef struct dollop_session dollop_session;

// How a conversation is made. Fill with `dollop_chat_options_init`.
typedef struct dollop_chat_options {
    // Bytes of this struct.
    size_t struct_size;
    // System prompt; NULL for the template's own.
    const char *system;
    // Positions of the KV cache; 0 for what the engine's budget was planned for.
    uint32_t context;
    // Tokens of a prompt that pass through the layers together; 0 for the plan's.
    uint32_t chunk;
    // A `DOLLOP_OVERFLOW_`.
    uint32_t overflow;
    // Always 0.
    uint32_t reserved;
} dollop_chat_options;

// What is added to the logit of a token.
typedef struct dollop_logit_bias {
    // Its id.
    uint32_t token;
    // Finite, or minus infinity for a token that is never chosen.
    float bias;
} dollop_logit_bias;

// How tokens are chosen. Fill with `dollop_sampling_init` (built-in numbers) or `dollop_engine_sampling` (the model's own),
// then change what should differ. A number that switches a step off is named with it.
typedef struct dollop_sampling {
    // Bytes of this struct.
    size_t struct_size;
    // Start of the random sequence: the same seed, tokens and budget give the same text.
    uint64_t seed;
    // Flattens (above 1) or sharpens the distribution; 0 always takes the likeliest token.
    float temperature;
    // Only the likeliest; 0 for all.
    uint32_t top_k;
    // Only the likeliest that together have this probability; 1 for all.
    float top_p;
    // Only those at least this part as likely as the likeliest; 0 for all.
    float min_p;
    // Only those whose surprise is nearest to the expected one, together of this probability; 1 for all.
    float typical_p;
    // Only logits within this many standard deviations of the highest; 0 for all.
    float top_n_sigma;
    // How often all but the least likely of the probable tokens are left out (XTC); 0 for never.
    float xtc_probability;
    // What counts as probable for XTC; above 0.5 for never.
    float xtc_threshold;
    // Divides the logit of recent tokens; 1 for none.
    float repeat_penalty;
    // How many tokens back are recent; 0 for no penalty.
    uint32_t repeat_last_n;
    // Subtracted from the logit of recent tokens; 0 for none.
    float presence_penalty;
    // Subtracted from the logit of recent tokens, once for each time; 0 for none.
    float frequency_penalty;
    // DRY: a token that would continue a repetition of n tokens loses multiplier * base^(n - allowed_length); 0 for nothing.
    float dry_multiplier;
    // See `dry_multiplier`.
    float dry_base;
    // Repetitions shorter than this are free of DRY.
    uint32_t dry_allowed_length;
    // How many tokens back DRY looks for repetitions; 0 for no DRY.
    uint32_t dry_last_n;
    // A `DOLLOP_MIROSTAT_`: takes the place of the whole chain but the temperature.
    uint32_t mirostat;
    // Surprise per token that mirostat aims at, in bits.
    float mirostat_tau;
    // How fast mirostat learns.
    float mirostat_eta;
    // Elements of `dry_breakers`, at most 64.
    uint32_t dry_breaker_count;
    // Texts over which DRY follows no repetition; NULL for the model's own. For none: not NULL, and a count of 0.
    const char *const *dry_breakers;
    // Added to the logits of single tokens before everything else; NULL for the model's own. For none: as above.
    const struct dollop_logit_bias *logit_bias;
    // Elements of `logit_bias`, at most 65536.
    size_t logit_bias_count;
    // The steps in order, such as "penalties;top_k;top_p;temperature"; NULL for the model's own.
    const char *chain;
} dollop_sampling;

// What happens during a generation. Programs ignore kinds that they do not know.
typedef struct dollop_event {
    // A `DOLLOP_EVENT_`.
    uint32_t kind;
    // The token's id.
    uint32_t token;
    // Whole UTF-8 characters with a NUL behind them; never NULL. Valid during the callback.
    const char *text;
    // Bytes of `text`, the NUL not counted.
    size_t text_len;
    // Prompt tokens read.
    uint64_t done;
    // Prompt tokens to be read in all.
    uint64_t total;
} dollop_event;

// Receives events, on the thread that generates. Returns 0 to go on, anything else to stop: the generation then ends with
// `DOLLOP_STOP_CANCELLED`, and the callback is not called again. May call any function of this library; those on the
// generating session or chat, but for `_cancel` and `_free`, are `DOLLOP_BUSY`. Must not throw or `longjmp`.
typedef int32_t (*dollop_event_callback)(const struct dollop_event *event, void *user_data);

// How to generate. Fill with `dollop_generate_options_init`, then change what should differ. Pointers must stay valid until
// the call that takes the options returns.
typedef struct dollop_generate_options {
    // Bytes of this struct.
    size_t struct_size;
    // Most tokens to generate; 0 only reads the prompt. 512.
    uint32_t max_tokens;
    // Not 0: go on after an end-of-turn token.
    int32_t ignore_eos;
    // How tokens are chosen; NULL for the model's own way.
    const struct dollop_sampling *sampling;
    // Texts that end the answer and are not part of it; NULL for none.
    const char *const *stop;
    // Elements of `stop`.
    size_t stop_count;
    // Where experts are streamed adaptively: the precision follows this many tokens per second, and results depend on the
    // machine's speed. 0 for not.
    double target_tps;
    // Receives events; NULL for none.
    dollop_event_callback on_event;
    // Handed to `on_event`.
    void *user_data;
    // The answer is JSON that obeys this JSON Schema, given as its text; NULL for any answer. One of `json_schema`, `regex` and `grammar`
    // at most.
    const char *json_schema;
    // The answer is what this regular expression matches as a whole; NULL for any answer.
    const char *regex;
    // The answer is what this grammar derives from `start`, in llguidance's form of Lark; NULL for any answer.
    const char *grammar;
} dollop_generate_options;

// A finished generation.
typedef struct dollop_outcome {
    // Bytes of this struct.
    size_t struct_size;
    // A `DOLLOP_STOP_`.
    uint32_t stop;
    // Tokens of the prompt.
    uint32_t prompt_tokens;
    // Of those, found in the cache.
    uint32_t reused_tokens;
    // Tokens generated, an end-of-turn token excluded.
    uint32_t generated_tokens;
    // Seconds for the rest of the prompt.
    double prefill_seconds;
    // Seconds for the generated tokens.
    double decode_seconds;
} dollop_outcome;

// One message of a conversation.
typedef struct dollop_message {
    // "system", "user", "assistant" or what else the template knows.
    const char *role;
    // The text.
    const char *content;
} dollop_message;

// A timeline in numbers.
typedef struct dollop_session_info {
    // Bytes of this struct.
    size_t struct_size;
    // Positions of the KV cache.
    uint64_t context;
    // Tokens in it.
    uint64_t tokens;
    // Tokens computed since the session was made: what reuse of the cache saves does not appear here.
    uint64_t processed_tokens;
} dollop_session_info;

// A GPU.
typedef struct dollop_device {
    // What `dollop_engine_options.gpu_index` names it by.
    uint32_t index;
    // 1 if kernels can run on it.
    uint32_t usable;
    // 1 if the processor does the work.
    uint32_t software;
    // Always 0.
    uint32_t reserved;
    // The largest buffer that a kernel can read, in bytes.
    uint64_t max_binding_bytes;
    // What it calls itself: UTF-8 that ends with a NUL, cut where it is longer.
    char name[128];
    // Vulkan, Metal or Dx12; ends with a NUL.
    char api[16];
} dollop_device;

// How far a long call is.
typedef struct dollop_progress {
    // What is being done, for people. Valid during the callback.
    const char *stage;
    // Bytes done.
    uint64_t done;
    // Bytes in all.
    uint64_t total;
} dollop_progress;

// Reports progress, on the thread that opens the model. Returns 0 to go on, anything else to cancel: the call then fails
// with `DOLLOP_CANCELLED`. May call any function of this library. Must not throw or `longjmp`.
typedef int32_t (*dollop_progress_callback)(const struct dollop_progress *progress, void *user_data);

// How a model is opened. Fill with `dollop_engine_options_init`, then change what should differ. Pointers must stay valid
// until the call that takes the options returns.
typedef struct dollop_engine_options {
    // Bytes of this struct.
    size_t struct_size;
    // A `DOLLOP_BACKEND_`; the CPU.
    uint32_t backend;
    // Which GPU of `dollop_devices`; -1 for the first that can be used.
    int32_t gpu_index;
    // Threads that compute, the caller's included; 0 for one per core.
    uint32_t threads;
    // Positions of the KV cache that the budget is planned for; 0 for the model's context, at most 4096.
    uint32_t context;
    // Tokens of a prompt that pass through the layers together; 0 for what the budget allows, at most 2048.
    uint32_t chunk;
    // A `DOLLOP_PRECISION_`.
    uint32_t precision;
    // Bits for the precision: 2, 3, 4, 6 or 8. Adaptive precision takes 0 for 3.
    uint32_t level;
    // Adaptive precision: bits of an expert of average weight, 2 to 8; 0 for 4.
    float quality;
    // Bytes of memory that the engine and one session may take together: experts are streamed if they do not fit. 0 for
    // no limit: everything is resident.
    uint64_t memory_bytes;
    // Folder for conversions. A GGUF file or a Hugging Face folder is converted into it once; with NULL these are
    // `DOLLOP_UNSUPPORTED`, and only Dollop files open.
    const char *cache_folder;
    // Folder for a GPU's compiled kernels; NULL for none.
    const char *pipelines_folder;
    // Experts per token, fewer than the model's; 0 for the model's. Changes results.
    uint32_t experts_used;
    // Experts that are read ahead on a guess of the next layer's choice; 0 for none. Changes no result.
    uint32_t lookahead;
    // Experts that are not resident are skipped below this share of a token's gate weights; 0 for never. Changes results.
    float skip_cold;
    // How much higher resident experts are ranked, as a part of the range of logits; 0 for not. Changes results.
    float cache_prior;
    // Reads at a time; 0 for as many as prove best.
    uint32_t lanes;
    // 1 streams experts even where all of them fit `memory_bytes`, so that the engine can give memory back later.
    uint32_t always_stream;
    // Progress of a conversion; NULL for none.
    dollop_progress_callback on_progress;
    // Handed to `on_progress`.
    void *progress_user_data;
} dollop_engine_options;

// A model in numbers; names are in `dollop_engine_info_json`.
typedef struct dollop_model_info {
    // Bytes of this struct.
    size_t struct_size;
    // Transformer blocks.
    uint32_t layers;
    // Experts per routed layer; 0 for a dense model.
    uint32_t experts;
    // Experts per token.
    uint32_t experts_used;
    // Hidden width of a routed expert; 0 for a dense model.
    uint32_t expert_width;
    // Longest context that the model was made for, in tokens.
    uint32_t context;
    // Token ids are below this; the length of an array of logits.
    uint32_t vocab;
    // Token at the beginning of a text; -1 for none.
    int64_t bos;
    // Token at the end of a text; -1 for none.
    int64_t eos;
    // Weights in matrices.
    uint64_t parameters;
    // Of those, what one token passes through.
    uint64_t active_parameters;
    // Bytes of all weights at the level in use.
    uint64_t bytes;
    // Bytes that a token reads.
    uint64_t active_bytes;
    // Threads that compute.
    uint32_t threads;
    // 1 if the model has a chat template.
    uint32_t has_chat_template;
} dollop_model_info;

// Called for each message: its level (a `DOLLOP_LOG_`), the part of the library that it is from, such as "dollop::session", and a line
// for people. The texts are valid during the callback. Runs on whichever thread logs, on several at a time. Must not throw or
// `longjmp`. What the library logs while it runs, on its thread, is dropped.
typedef void (*dollop_log_callback)(uint32_t level,
                                    const char *target,
                                    const char *message,
                                    void *user_data);

// How a budget is spent, in bytes.
typedef struct dollop_plan_info {
    // Bytes of this struct.
    size_t struct_size;
    // What may be used; 0 for no limit.
    uint64_t budget_bytes;
    // Everything together.
    uint64_t total_bytes;
    // The smallest budget that works.
    uint64_t smallest_bytes;
    // Program, tokenizer and tables.
    uint64_t overhead_bytes;
    // Weights that every token uses.
    uint64_t dense_bytes;
    // KV cache of one session.
    uint64_t kv_bytes;
    // Activations and other scratch of one session.
    uint64_t scratch_bytes;
    // Experts: all of them, or the cache.
    uint64_t expert_bytes;
    // Memory that streamed experts pass through on their way to a GPU.
    uint64_t staging_bytes;
    // Positions of the KV cache.
    uint32_t context;
    // Tokens of a prompt that pass through the layers together.
    uint32_t chunk;
    // 1 if experts are streamed, 0 if all are resident.
    uint32_t streaming;
    // 1 if a GPU computes.
    uint32_t gpu;
    // 1 if experts are resident at fewer bits than are stored.
    uint32_t lowered;
    // Levels that `dollop_plan_level_at` tells of.
    uint32_t level_count;
} dollop_plan_info;

// What the experts at one level would mean.
typedef struct dollop_plan_level {
    // Bytes of this struct.
    size_t struct_size;
    // Bits.
    uint32_t bits;
    // The part of the experts at this level that the memory holds, 0 to 1.
    double resident;
    // Bytes of all experts.
    uint64_t expert_bytes;
    // Expert bytes that a token touches.
    uint64_t touched_bytes;
    // Bytes that a token reads if all experts are equally likely.
    uint64_t read_bytes;
} dollop_plan_level;

// How a session is made. Fill with `dollop_session_options_init`.
typedef struct dollop_session_options {
    // Bytes of this struct.
    size_t struct_size;
    // Positions of the KV cache; 0 for what the engine's budget was planned for.
    uint32_t context;
    // Tokens of a prompt that pass through the layers together; 0 for the plan's. Results do not depend on it.
    uint32_t chunk;
} dollop_session_options;

// What an engine has done since it was opened. Numbers of streaming are 0 where all experts are resident, numbers of a GPU
// where the CPU computes.
typedef struct dollop_stats {
    // Bytes of this struct.
    size_t struct_size;
    // 1 if experts are streamed or refined.
    uint32_t streaming;
    // 1 if a GPU computes or did.
    uint32_t gpu;
    // Planes of experts wanted.
    uint64_t planes_wanted;
    // Of those, resident.
    uint64_t planes_hit;
    // Bytes read because they were wanted.
    uint64_t bytes_wanted;
    // Bytes read ahead of need.
    uint64_t bytes_ahead;
    // Bytes read for rows of an embedding that is not held.
    uint64_t bytes_embedding;
    // Planes given up above the base.
    uint64_t downgrades;
    // Bases given up.
    uint64_t evictions;
    // Reads that were repeated.
    uint64_t retries;
    // Nanoseconds that computing waited for reads.
    uint64_t wait_ns;
    // Nanoseconds spent computing experts.
    uint64_t compute_ns;
    // Mean bits of the experts computed, by gate mass; 0 before the first token.
    double mean_bits;
    // `planes_hit` by `planes_wanted`; 1 before the first token.
    double hit_rate;
    // Bytes allocated on the GPU now.
    uint64_t gpu_bytes;
    // Kernels launched on the GPU.
    uint64_t gpu_dispatches;
    // Waits for a result of the GPU.
    uint64_t gpu_readbacks;
} dollop_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What went wrong in this thread's last call that failed: one line for people; "" if none did. A call that succeeds
// leaves it. The text is valid until the next call on this thread that fails.
const char *dollop_last_error(void);

// Fills `options` with the defaults; `struct_size` is `sizeof *options`. Any thread.
dollop_status dollop_chat_options_init(struct dollop_chat_options *options, size_t struct_size);

// Begins a conversation on a new timeline. `options` may be NULL. `DOLLOP_UNSUPPORTED` for a model without tokenizer or
// chat template. Writes a handle to `*chat`, which `dollop_chat_free` closes. Any thread.
dollop_status dollop_chat_new(const struct dollop_engine *engine,
                              const struct dollop_chat_options *options,
                              struct dollop_chat **chat);

// Closes the handle; NULL is fine. Any thread: a generation that runs is cancelled, keeps what it needs, and calls its
// callback at most once more, before its own call returns.
dollop_status dollop_chat_free(struct dollop_chat *chat);

// Stops the generation that runs on this chat; its call returns `DOLLOP_OK` with `DOLLOP_STOP_CANCELLED`, and the answer
// stays in the conversation as far as it came. Does nothing if none runs. Any thread, also from a callback.
dollop_status dollop_chat_cancel(const struct dollop_chat *chat);

// Says `message` as the user and generates the answer. `options` may be NULL. `answer`, if not NULL, gets its text, to be
// freed with `dollop_text_free`; `outcome`, if not NULL, has its `struct_size` set and is filled. Blocks; one call at a time
// (`DOLLOP_BUSY`). After a failure the conversation is as it was.
dollop_status dollop_chat_send(const struct dollop_chat *chat,
                               const char *message,
                               const struct dollop_generate_options *options,
                               char **answer,
                               struct dollop_outcome *outcome);

// Takes the last answer back and answers the same message again. Otherwise as `dollop_chat_send`.
dollop_status dollop_chat_regenerate(const struct dollop_chat *chat,
                                     const struct dollop_generate_options *options,
                                     char **answer,
                                     struct dollop_outcome *outcome);

// Forgets the conversation but not the system prompt. One call at a time (`DOLLOP_BUSY`).
dollop_status dollop_chat_reset(const struct dollop_chat *chat);

// Replaces the conversation, the system prompt included, by `count` messages. One call at a time (`DOLLOP_BUSY`).
dollop_status dollop_chat_set_messages(const struct dollop_chat *chat,
                                       const struct dollop_message *list,
                                       size_t count);

// The conversation as a JSON array of objects with `role` and `content`. `*json` is freed with `dollop_text_free`. One call
// at a time (`DOLLOP_BUSY`).
dollop_status dollop_chat_messages_json(const struct dollop_chat *chat,
                                        char **json);

// Sets what the template sees beside the messages, such as {"enable_thinking": false}: a JSON object, in place of what was
// set before. One call at a time (`DOLLOP_BUSY`).
dollop_status dollop_chat_set_variables(const struct dollop_chat *chat,
                                        const char *json);

// Sets the local time for templates that say it, in seconds since 1970 as if the local clock showed UTC: the library reads
// no clock. One call at a time (`DOLLOP_BUSY`).
dollop_status dollop_chat_set_time(const struct dollop_chat *chat,
                                   uint64_t seconds);

// Fills `info`, whose `struct_size` is set, with the numbers of the chat's timeline. One call at a time (`DOLLOP_BUSY`).
dollop_status dollop_chat_get(const struct dollop_chat *chat,
                              struct dollop_session_info *info);

// Renders messages with the model's chat template, at the end the beginning of an answer if `add_generation_prompt` is not
// 0. `*text` is freed with `dollop_text_free`. Any thread.
dollop_status dollop_engine_render(const struct dollop_engine *engine,
                                   const struct dollop_message *list,
                                   size_t count,
                                   int32_t add_generation_prompt,
                                   char **text);

// Lists the GPUs. Writes `*count`, and the GPUs to `devices`, which has room for `capacity`; with `devices` NULL only the
// count. Asks the drivers, which may take a second. No GPU is no failure. Any thread.
dollop_status dollop_devices(struct dollop_device *devices,
                             size_t capacity,
                             size_t *count);

// The same and more as a JSON array. `*json` is freed with `dollop_text_free`. Any thread.
dollop_status dollop_devices_json(char **json);

// Opens a model: a Dollop file, or with `cache_folder` a GGUF file (any part of a split one) or a Hugging Face folder,
// which is converted once. `options` may be NULL for the defaults. Writes a handle to `*engine`, which
// `dollop_engine_free` closes. Blocks until the model is open, minutes for a conversion; call it from a thread that may.
dollop_status dollop_engine_open(const char *path,
                                 const struct dollop_engine_options *options,
                                 struct dollop_engine **engine);

// Closes the handle; NULL is fine. Sessions, chats and plans of the engine stay as they are, and the model stays in memory
// until they are freed too. Any thread.
dollop_status dollop_engine_free(struct dollop_engine *engine);

// Opens the Dollop file that lies in `length` bytes from `offset` on (a multiple of 64) of an open file; a `length` of 0 is
// all that follows. For Android's assets and documents, and sandboxes. The descriptor is duplicated: the caller closes its
// own whenever it likes. Foreign models have to be converted first. Otherwise as `dollop_engine_open`. `DOLLOP_UNSUPPORTED`
// on Windows, which has no descriptors.
dollop_status dollop_engine_open_file(int descriptor,
                                      uint64_t offset,
                                      uint64_t length,
                                      const struct dollop_engine_options *options,
                                      struct dollop_engine **engine);

// Plans what `dollop_engine_open_file` with the same arguments would do with the memory; loads nothing. Otherwise as
// `dollop_plan_new`.
dollop_status dollop_plan_new_file(int descriptor,
                                   uint64_t offset,
                                   uint64_t length,
                                   const struct dollop_engine_options *options,
                                   struct dollop_plan **plan);

// Fills `options` with the defaults; `struct_size` is `sizeof *options`. Any thread.
dollop_status dollop_generate_options_init(struct dollop_generate_options *options,
                                           size_t struct_size);

// Zeroes `outcome` and sets its size; `struct_size` is `sizeof *outcome`. Any thread.
dollop_status dollop_outcome_init(struct dollop_outcome *outcome, size_t struct_size);

// Handles that are open in this process: for tests that nothing is forgotten. Any thread.
size_t dollop_open_handles(void);

// Clears `info` and sets its size; `struct_size` is `sizeof *info`. Any thread.
dollop_status dollop_model_info_init(struct dollop_model_info *info, size_t struct_size);

// Fills `info`, whose `struct_size` is set. Any thread.
dollop_status dollop_engine_info(const struct dollop_engine *engine,
                                 struct dollop_model_info *info);

// The same and more as a JSON object: name, architecture, how and on what it runs, and in `note` why the CPU computes where
// a GPU would have been preferred. `*json` is freed with `dollop_text_free`. Any thread.
dollop_status dollop_engine_info_json(const struct dollop_engine *engine,
                                      char **json);

// Has `callback` hear what the library logs, up to `max_level` (a `DOLLOP_LOG_`), in place of the one before; NULL ends that.
// When this returns, the callback before is not running and is not called again, so its `user_data` may be freed. Hold no
// lock meanwhile that the callback takes. Any thread, but `DOLLOP_BUSY` from the callback itself. `DOLLOP_UNSUPPORTED` in a
// program that has given the Rust crate `log` another logger.
dollop_status dollop_set_log(dollop_log_callback callback,
                             void *user_data,
                             uint32_t max_level);

// Gives the engine another budget, in bytes. Where experts are streamed, their cache shrinks or grows to it, and what is
// beyond goes back to the system before this returns; `given`, if not NULL, gets the bytes that did. Texts at exact precision
// stay the same. A budget that cannot work is `DOLLOP_BUDGET` and changes nothing; `DOLLOP_UNSUPPORTED` where the cache is on
// a GPU. Any thread, also during a generation and from its callback.
dollop_status dollop_engine_set_memory(const struct dollop_engine *engine,
                                       uint64_t bytes,
                                       uint64_t *given);

// Gives memory back, or takes it again, as the system asks for it; the budget stays. `level` is a `DOLLOP_TRIM_`, which says
// how large the cache is: the same warning twice does nothing the second time. `given`, if not NULL, gets the bytes that went
// back to the system. Any thread, also during a generation and from its callback.
dollop_status dollop_engine_trim(const struct dollop_engine *engine,
                                 uint32_t level,
                                 uint64_t *given);

// Fills `options` with the defaults; `struct_size` is `sizeof *options`. Any thread.
dollop_status dollop_engine_options_init(struct dollop_engine_options *options, size_t struct_size);

// Clears `info` and sets its size; `struct_size` is `sizeof *info`. Any thread.
dollop_status dollop_plan_info_init(struct dollop_plan_info *info, size_t struct_size);

// Clears `level` and sets its size; `struct_size` is `sizeof *level`. Any thread.
dollop_status dollop_plan_level_init(struct dollop_plan_level *level, size_t struct_size);

// Plans what `dollop_engine_open` with the same arguments would do with the memory. Loads nothing, but converts a foreign
// model as that call would. A budget that cannot work is `DOLLOP_BUDGET`. Writes a handle to `*plan`, which
// `dollop_plan_free` closes.
dollop_status dollop_plan_new(const char *path,
                              const struct dollop_engine_options *options,
                              struct dollop_plan **plan);

// The plan that an open model follows. Writes a handle to `*plan`, which `dollop_plan_free` closes. Any thread.
dollop_status dollop_engine_plan(const struct dollop_engine *engine,
                                 struct dollop_plan **plan);

// Closes the handle; NULL is fine. Any thread.
dollop_status dollop_plan_free(struct dollop_plan *plan);

// Fills `info`, whose `struct_size` is set. Any thread.
dollop_status dollop_plan_get(const struct dollop_plan *plan, struct dollop_plan_info *info);

// Fills `level`, whose `struct_size` is set, with the level at `index`, lowest first. Any thread.
dollop_status dollop_plan_level_at(const struct dollop_plan *plan,
                                   size_t index,
                                   struct dollop_plan_level *level);

// The whole plan as a JSON object. `*json` is freed with `dollop_text_free`. Any thread.
dollop_status dollop_plan_json(const struct dollop_plan *plan, char **json);

// Fills `sampling` with the built-in numbers; `struct_size` is `sizeof *sampling`. Any thread.
dollop_status dollop_sampling_init(struct dollop_sampling *sampling, size_t struct_size);

// Fills `sampling`, whose `struct_size` is set, with the numbers that the model's file advises, and the built-in ones where
// it says nothing. Any thread.
dollop_status dollop_engine_sampling(const struct dollop_engine *engine,
                                     struct dollop_sampling *sampling);

// Writes the timeline to a file: its tokens, and the keys and values that were computed of them. It takes the place of a
// file that is there only when it is whole and on the disk. `bytes`, if not NULL, gets its size. One call at a time
// (`DOLLOP_BUSY`). After a failure the timeline and the old file are as they were.
dollop_status dollop_session_save(const struct dollop_session *session,
                                  const char *path,
                                  uint64_t *bytes);

// Goes on with a timeline that `dollop_session_save` or `dollop_chat_save` wrote, perhaps in another process. On one backend
// and at exact precision its logits are those of the timeline that never stopped. The context is that of `options`, which may
// be NULL. `DOLLOP_MALFORMED` for a damaged file, `DOLLOP_UNSUPPORTED` for one of another model, precision or version,
// `DOLLOP_CONTEXT_FULL` where its tokens do not fit. Writes a handle to `*session`. Any thread.
dollop_status dollop_session_load(const struct dollop_engine *engine,
                                  const char *path,
                                  const struct dollop_session_options *options,
                                  struct dollop_session **session);

// A second timeline that begins with what this one holds, to continue one prefix in several ways; nothing is computed.
// Writes a handle to `*fork`, which `dollop_session_free` closes. One call at a time (`DOLLOP_BUSY`).
dollop_status dollop_session_fork(const struct dollop_session *session,
                                  struct dollop_session **fork);

// Writes the conversation to a file: its timeline, its messages with the system prompt, what to do on overflow, and the
// template's variables, but not the time. Otherwise as `dollop_session_save`.
dollop_status dollop_chat_save(const struct dollop_chat *chat,
                               const char *path,
                               uint64_t *bytes);

// Goes on with a conversation that `dollop_chat_save` wrote. Otherwise as `dollop_session_load`; a timeline without a
// conversation is `DOLLOP_MALFORMED`. Writes a handle to `*chat`, which `dollop_chat_free` closes.
dollop_status dollop_chat_load(const struct dollop_engine *engine,
                               const char *path,
                               const struct dollop_session_options *options,
                               struct dollop_chat **chat);

// Fills `options` with the defaults; `struct_size` is `sizeof *options`. Any thread.
dollop_status dollop_session_options_init(struct dollop_session_options *options,
                                          size_t struct_size);

// Makes an empty timeline; all its memory is allocated here. `options` may be NULL. Writes a handle to `*session`, which
// `dollop_session_free` closes. Any thread.
dollop_status dollop_session_new(const struct dollop_engine *engine,
                                 const struct dollop_session_options *options,
                                 struct dollop_session **session);

// Closes the handle; NULL is fine. Any thread: a generation that runs is cancelled, keeps what it needs, and calls its
// callback at most once more, before its own call returns.
dollop_status dollop_session_free(struct dollop_session *session);

// Stops the generation that runs on this session; its call returns `DOLLOP_OK` with `DOLLOP_STOP_CANCELLED`, and what was
// generated stays. Does nothing if none runs. Any thread, also from a callback.
dollop_status dollop_session_cancel(const struct dollop_session *session);

// Reads the prompt `ids` and continues it. What the cache holds of the prompt's beginning is reused; the rest of the cache
// is forgotten. `options` may be NULL. `text`, if not NULL, gets the answer, to be freed with `dollop_text_free`;
// `outcome`, if not NULL, has its `struct_size` set and is filled. Blocks; one call at a time (`DOLLOP_BUSY`).
dollop_status dollop_session_generate(const struct dollop_session *session,
                                      const uint32_t *ids,
                                      size_t count,
                                      const struct dollop_generate_options *options,
                                      char **text,
                                      struct dollop_outcome *outcome);

// As `dollop_session_generate`, with the prompt as text, in front of which come the tokens that the model wants at the
// beginning of a text. The chat template is not used.
dollop_status dollop_session_complete(const struct dollop_session *session,
                                      const char *prompt,
                                      const struct dollop_generate_options *options,
                                      char **text,
                                      struct dollop_outcome *outcome);

// Appends `ids` to the timeline and writes the logits of the token after them (unnormalised log probabilities, by token id)
// to `logits`, which has room for `capacity`: at least `dollop_model_info.vocab`, else `DOLLOP_TOO_SMALL`. Blocks; one call
// at a time (`DOLLOP_BUSY`). After a failure the timeline is as it was.
dollop_status dollop_session_logits(const struct dollop_session *session,
                                    const uint32_t *ids,
                                    size_t count,
                                    float *logits,
                                    size_t capacity);

// Forgets all but the first `count` tokens of the timeline; no failure if there are fewer. One call at a time
// (`DOLLOP_BUSY`).
dollop_status dollop_session_rewind(const struct dollop_session *session,
                                    size_t count);

// The tokens of the timeline. Writes `*count`, and the ids to `ids`, which has room for `capacity`; with `ids` NULL only
// the count. One call at a time (`DOLLOP_BUSY`).
dollop_status dollop_session_tokens(const struct dollop_session *session,
                                    uint32_t *ids,
                                    size_t capacity,
                                    size_t *count);

// Clears `info` and sets its size; `struct_size` is `sizeof *info`. Any thread.
dollop_status dollop_session_info_init(struct dollop_session_info *info, size_t struct_size);

// Fills `info`, whose `struct_size` is set. One call at a time (`DOLLOP_BUSY`).
dollop_status dollop_session_get(const struct dollop_session *session,
                                 struct dollop_session_info *info);

// Clears `stats` and sets its size; `struct_size` is `sizeof *stats`. Any thread.
dollop_status dollop_stats_init(struct dollop_stats *stats, size_t struct_size);

// Fills `stats`, whose `struct_size` is set. Any thread, also during a generation.
dollop_status dollop_engine_stats(const struct dollop_engine *engine, struct dollop_stats *stats);

// All counters as a JSON object: `stream` and `gpu`, each null where there is none, and the router's choices that were
// dropped or redirected. `*json` is freed with `dollop_text_free`. Any thread, also during a generation.
dollop_status dollop_engine_stats_json(const struct dollop_engine *engine,
                                       char **json);

// A status's name, such as "DOLLOP_BUDGET"; "unknown status" for any other number. Any thread; the text is never freed.
const char *dollop_status_name(int32_t status);

// Frees a text that a function of this library wrote to a `char **`; NULL is fine. Any thread. Nothing else may be freed
// with it, and these texts with nothing else.
void dollop_text_free(char *text);

// Turns text into token ids. With `add_special` (not 0) the tokens that the model wants at the beginning of a text come
// first. Writes `*count`, and the ids to `ids`, which has room for `capacity`; with `ids` NULL only the count.
// `DOLLOP_TOO_SMALL` if there are more. Any thread.
dollop_status dollop_engine_tokenize(const struct dollop_engine *engine,
                                     const char *text,
                                     int32_t add_special,
                                     uint32_t *ids,
                                     size_t capacity,
                                     size_t *count);

// Turns `count` token ids into text; with `skip_special` (not 0) tokens that are no text are left out. Unknown ids are
// `DOLLOP_INVALID`. `*text` is freed with `dollop_text_free`. Any thread.
dollop_status dollop_engine_detokenize(const struct dollop_engine *engine,
                                       const uint32_t *ids,
                                       size_t count,
                                       int32_t skip_special,
                                       char **text);

// `DOLLOP_ABI_VERSION` of the library that is loaded. Any thread.
uint32_t dollop_abi_version(void);

// The library's version, such as "0.1.0". Any thread; the text is never freed.
const char *dollop_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DOLLOP_H */
