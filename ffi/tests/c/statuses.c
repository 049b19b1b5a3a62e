/* Every status that C can cause; outputs then stay unchanged. The other three are in ffi/src/tests.rs. */
#include "expect.h"
#include <math.h>

static int refuse_progress(const dollop_progress *progress, void *user_data) {
    CHECK(progress->stage != NULL && progress->done <= progress->total);
    (*(int *)user_data)++;
    return 1;
}

static dollop_chat *ours;

/* A callback may only cancel and free its own chat. */
static int reenter(const dollop_event *event, void *user_data) {
    (void)event;
    char *text = (char *)1;
    EXPECT(DOLLOP_BUSY, "not returned", dollop_chat_send(ours, "Hello", NULL, &text, NULL));
    EXPECT(DOLLOP_BUSY, "not returned", dollop_chat_messages_json(ours, &text));
    EXPECT(DOLLOP_BUSY, "not returned", dollop_chat_reset(ours));
    CHECK(text == (char *)1);
    (*(int *)user_data)++;
    return 0;
}

static void opening(const struct fixtures *f) {
    dollop_engine *const untouched = (dollop_engine *)1;
    dollop_engine *engine = untouched;
    NEW(dollop_engine_options, o);

    EXPECT(DOLLOP_IO, "no-such-file", dollop_engine_open("no-such-file", NULL, &engine));
    EXPECT(DOLLOP_MALFORMED, "ends here", dollop_engine_open(f->garbage, &o, &engine));
    EXPECT(DOLLOP_UNSUPPORTED, "cache folder", dollop_engine_open(f->talker, &o, &engine));
    EXPECT(DOLLOP_NULL, "path", dollop_engine_open(NULL, &o, &engine));
    EXPECT(DOLLOP_NULL, "engine", dollop_engine_open(f->model, &o, NULL));

    o.memory_bytes = 1;
    EXPECT(DOLLOP_BUDGET, "too small", dollop_engine_open(f->model, &o, &engine));
    o.memory_bytes = 0;

    int asked = 0;
    o.cache_folder = f->cache;
    o.on_progress = refuse_progress;
    o.progress_user_data = &asked;
    EXPECT(DOLLOP_CANCELLED, "cancelled", dollop_engine_open(f->talker, &o, &engine));
    CHECK(asked == 1);

    OK(dollop_engine_options_init(&o, sizeof o));
    o.backend = DOLLOP_BACKEND_GPU;
    o.gpu_index = 9999;
    EXPECT(DOLLOP_DEVICE, "GPU", dollop_engine_open(f->model, &o, &engine));

#define REFUSED(field, value, part)                                                                          \
    OK(dollop_engine_options_init(&o, sizeof o));                                                            \
    o.field = value;                                                                                         \
    EXPECT(DOLLOP_INVALID, part, dollop_engine_open(f->model, &o, &engine))
    REFUSED(backend, 77, "DOLLOP_BACKEND_");
    REFUSED(precision, 77, "DOLLOP_PRECISION_");
    REFUSED(precision, DOLLOP_PRECISION_EXACT, "level");
    REFUSED(level, 4, "DOLLOP_PRECISION_EXACT");
    REFUSED(level, 5, "2, 3, 4, 6 or 8");
    REFUSED(threads, UINT32_MAX, "threads");
    REFUSED(lanes, 33, "lanes");
    REFUSED(lookahead, UINT32_MAX, "lookahead");
    REFUSED(experts_used, 1000, "experts per token");
    REFUSED(skip_cold, NAN, "skip-cold");
    REFUSED(cache_prior, 2, "cache-prior");
    REFUSED(context, UINT32_MAX, "context");
#undef REFUSED
    OK(dollop_engine_options_init(&o, sizeof o));
    o.precision = DOLLOP_PRECISION_ADAPTIVE;
    o.quality = NAN;
    EXPECT(DOLLOP_INVALID, "quality", dollop_engine_open(f->model, &o, &engine));
    CHECK(engine == untouched);
}

static void sizes(const struct fixtures *f) {
    dollop_engine *engine = NULL;
    dollop_engine_options o;
    memset(&o, 0xff, sizeof o);
    EXPECT(DOLLOP_STRUCT_SIZE, "dollop_engine_options_init", dollop_engine_open(f->model, &o, &engine));
    memset(&o, 0, sizeof o);
    EXPECT(DOLLOP_STRUCT_SIZE, "struct_size is 0", dollop_engine_open(f->model, &o, &engine));
    EXPECT(DOLLOP_STRUCT_SIZE, "struct_size", dollop_engine_options_init(&o, sizeof o + 8));
    EXPECT(DOLLOP_STRUCT_SIZE, "struct_size", dollop_engine_options_init(&o, 3));
    CHECK(o.struct_size == 0 && engine == NULL);
    EXPECT(DOLLOP_NULL, "dollop_engine_options", dollop_engine_options_init(NULL, sizeof o));
#define BAD_SIZE(type)                                                                                       \
    do {                                                                                                     \
        type value;                                                                                          \
        memset(&value, 0, sizeof value);                                                                     \
        EXPECT(DOLLOP_STRUCT_SIZE, #type, type##_init(&value, sizeof value - 1));                            \
        EXPECT(DOLLOP_NULL, #type, type##_init(NULL, sizeof value));                                         \
        CHECK(value.struct_size == 0);                                                                       \
        OK(type##_init(&value, sizeof value));                                                               \
        CHECK(value.struct_size == sizeof value);                                                            \
    } while (0)
    BAD_SIZE(dollop_sampling);
    BAD_SIZE(dollop_generate_options);
    BAD_SIZE(dollop_outcome);
    BAD_SIZE(dollop_session_options);
    BAD_SIZE(dollop_session_info);
    BAD_SIZE(dollop_chat_options);
    BAD_SIZE(dollop_model_info);
    BAD_SIZE(dollop_plan_info);
    BAD_SIZE(dollop_plan_level);
    BAD_SIZE(dollop_stats);
}

static void handles(dollop_engine *engine) {
    dollop_session *session = NULL;
    dollop_chat *chat = NULL;
    dollop_plan *plan = NULL;
    OK(dollop_session_new(engine, NULL, &session));
    OK(dollop_chat_new(engine, NULL, &chat));
    OK(dollop_engine_plan(engine, &plan));

    EXPECT(DOLLOP_NULL, "engine", dollop_engine_plan(NULL, &plan));
    EXPECT(DOLLOP_NULL, "session", dollop_session_rewind(NULL, 0));
    EXPECT(DOLLOP_NULL, "chat", dollop_chat_reset(NULL));
    EXPECT(DOLLOP_WRONG_HANDLE, "chat", dollop_session_rewind((dollop_session *)chat, 0));
    EXPECT(DOLLOP_WRONG_HANDLE, "engine", dollop_chat_reset((dollop_chat *)engine));
    EXPECT(DOLLOP_WRONG_HANDLE, "session", dollop_engine_free((dollop_engine *)session));
    EXPECT(DOLLOP_WRONG_HANDLE, "plan", dollop_session_free((dollop_session *)plan));
    EXPECT(DOLLOP_CLOSED, "never", dollop_chat_reset((dollop_chat *)&chat));
    EXPECT(DOLLOP_CLOSED, "never", dollop_plan_free((dollop_plan *)(uintptr_t)12345));

    OK(dollop_session_free(session));
    OK(dollop_chat_free(chat));
    OK(dollop_plan_free(plan));
    EXPECT(DOLLOP_CLOSED, "session", dollop_session_free(session));
    EXPECT(DOLLOP_CLOSED, "session", dollop_session_cancel(session));
    EXPECT(DOLLOP_CLOSED, "chat", dollop_chat_send(chat, "Hello", NULL, NULL, NULL));
    dollop_plan_info info;
    EXPECT(DOLLOP_CLOSED, "plan", dollop_plan_get(plan, &info));

    OK(dollop_engine_free(NULL));
    OK(dollop_session_free(NULL));
    OK(dollop_chat_free(NULL));
    OK(dollop_plan_free(NULL));
    dollop_text_free(NULL);
}

static void texts(dollop_engine *engine, uint32_t vocab) {
    size_t count = 99;
    uint32_t ids[2] = {7, 7};
    char *text = (char *)1;
    EXPECT(DOLLOP_UTF8, "text", dollop_engine_tokenize(engine, "\xff", 1, NULL, 0, &count));
    EXPECT(DOLLOP_NULL, "text", dollop_engine_tokenize(engine, NULL, 1, NULL, 0, &count));
    EXPECT(DOLLOP_TOO_SMALL, "room for 2", dollop_engine_tokenize(engine, "one two three four", 0, ids, 2, &count));
    CHECK(count == 99 && ids[0] == 7 && ids[1] == 7);
    EXPECT(DOLLOP_NULL, "ids", dollop_engine_detokenize(engine, NULL, 2, 0, &text));
    EXPECT(DOLLOP_INVALID, "elements", dollop_engine_detokenize(engine, ids, SIZE_MAX, 0, &text));
    ids[1] = vocab;
    EXPECT(DOLLOP_INVALID, "token", dollop_engine_detokenize(engine, ids, 2, 0, &text));
    dollop_message message = {"user", NULL};
    EXPECT(DOLLOP_NULL, "content", dollop_engine_render(engine, &message, 1, 1, &text));
    message.content = "\xc3";
    EXPECT(DOLLOP_UTF8, "content", dollop_engine_render(engine, &message, 1, 1, &text));
    CHECK(text == (char *)1);
}

static void generating(dollop_engine *engine, uint32_t vocab) {
    NEW(dollop_chat_options, small);
    small.context = 64;
    OK(dollop_chat_new(engine, &small, &ours));
    NEW(dollop_generate_options, g);
    NEW(dollop_outcome, outcome);
    g.max_tokens = 2;
    char *text = (char *)1;

    char longer[2000];
    memset(longer, 'a', sizeof longer);
    for (size_t i = 1; i < sizeof longer; i += 2) longer[i] = ' ';
    longer[sizeof longer - 1] = 0;
    EXPECT(DOLLOP_CONTEXT_FULL, "context", dollop_chat_send(ours, longer, &g, &text, &outcome));
    EXPECT(DOLLOP_UTF8, "message", dollop_chat_send(ours, "\xe2\x82", &g, &text, &outcome));
    EXPECT(DOLLOP_INVALID, "again", dollop_chat_regenerate(ours, &g, &text, &outcome));
    EXPECT(DOLLOP_INVALID, "JSON", dollop_chat_set_variables(ours, "[1]"));
    EXPECT(DOLLOP_INVALID, "year", dollop_chat_set_time(ours, UINT64_MAX));
    OK(dollop_chat_set_variables(ours, "{\"messages\": 5}"));
    EXPECT(DOLLOP_TEMPLATE, "template", dollop_chat_send(ours, "Hello", &g, &text, &outcome));
    OK(dollop_chat_set_variables(ours, "{}"));
    small.overflow = 7;
    dollop_chat *none = NULL;
    EXPECT(DOLLOP_INVALID, "overflow", dollop_chat_new(engine, &small, &none));

    g.target_tps = NAN;
    EXPECT(DOLLOP_INVALID, "target_tps", dollop_chat_send(ours, "Hello", &g, &text, &outcome));
    g.target_tps = 0;
    g.json_schema = "{\"type\": 5}";
    EXPECT(DOLLOP_INVALID, "JSON Schema", dollop_chat_send(ours, "Hello", &g, &text, &outcome));
    g.regex = "a(b";
    EXPECT(DOLLOP_INVALID, "one of them", dollop_chat_send(ours, "Hello", &g, &text, &outcome));
    g.json_schema = NULL;
    EXPECT(DOLLOP_INVALID, "regular expression", dollop_chat_send(ours, "Hello", &g, &text, &outcome));
    g.regex = NULL;
    const char *stops[] = {"a", NULL};
    g.stop = stops;
    g.stop_count = 2;
    EXPECT(DOLLOP_NULL, "stop", dollop_chat_send(ours, "Hello", &g, &text, &outcome));
    g.stop = NULL;

    dollop_sampling s;
    g.sampling = &s;
#define REFUSED(field, value, part)                                                                          \
    OK(dollop_sampling_init(&s, sizeof s));                                                                  \
    s.field = value;                                                                                         \
    EXPECT(DOLLOP_INVALID, part, dollop_chat_send(ours, "Hello", &g, &text, &outcome))
    REFUSED(temperature, NAN, "temperature");
    REFUSED(top_p, 0, "top-p");
    REFUSED(min_p, 2, "min-p");
    REFUSED(typical_p, -1, "typical-p");
    REFUSED(top_n_sigma, -1, "top-n-sigma");
    REFUSED(xtc_probability, 2, "xtc-probability");
    REFUSED(xtc_threshold, -1, "xtc-threshold");
    REFUSED(repeat_penalty, 0, "repeat-penalty");
    REFUSED(repeat_last_n, UINT32_MAX, "repeat-last-n");
    REFUSED(presence_penalty, INFINITY, "presence-penalty");
    REFUSED(frequency_penalty, INFINITY, "frequency-penalty");
    REFUSED(dry_multiplier, -1, "dry-multiplier");
    REFUSED(dry_base, 0, "dry-base");
    REFUSED(dry_last_n, UINT32_MAX, "dry-last-n");
    REFUSED(dry_allowed_length, UINT32_MAX, "dry-allowed-length");
    REFUSED(mirostat, 3, "mirostat");
    REFUSED(mirostat_tau, -1, "mirostat-tau");
    REFUSED(mirostat_eta, 2, "mirostat-eta");
    REFUSED(chain, "top_k;nonsense", "nonsense");
#undef REFUSED
    dollop_logit_bias bias = {vocab, 1};
    OK(dollop_sampling_init(&s, sizeof s));
    s.logit_bias = &bias;
    s.logit_bias_count = 1;
    EXPECT(DOLLOP_INVALID, "logit-bias", dollop_chat_send(ours, "Hello", &g, &text, &outcome));
    s.struct_size = 5;
    EXPECT(DOLLOP_STRUCT_SIZE, "dollop_sampling", dollop_chat_send(ours, "Hello", &g, &text, &outcome));
    g.sampling = NULL;
    outcome.struct_size = 5;
    EXPECT(DOLLOP_STRUCT_SIZE, "dollop_outcome", dollop_chat_send(ours, "Hello", &g, &text, &outcome));
    CHECK(text == (char *)1 && outcome.prompt_tokens == 0);

    int asked = 0;
    g.on_event = reenter;
    g.user_data = &asked;
    OK(dollop_chat_send(ours, "Hello", &g, NULL, NULL));
    CHECK(asked >= 3);
    OK(dollop_chat_free(ours));
}

static void plain(dollop_engine *engine, uint32_t vocab) {
    dollop_session *session = NULL;
    NEW(dollop_session_options, o);
    o.context = UINT32_MAX;
    EXPECT(DOLLOP_INVALID, "context", dollop_session_new(engine, &o, &session));
    o.context = 16;
    OK(dollop_session_new(engine, &o, &session));
    float *logits = malloc(vocab * sizeof *logits);
    logits[0] = 7;
    uint32_t ids[17] = {1};
    EXPECT(DOLLOP_TOO_SMALL, "room for", dollop_session_logits(session, ids, 1, logits, vocab - 1));
    EXPECT(DOLLOP_INVALID, "no token", dollop_session_logits(session, ids, 0, logits, vocab));
    EXPECT(DOLLOP_NULL, "logits", dollop_session_logits(session, ids, 1, NULL, vocab));
    EXPECT(DOLLOP_CONTEXT_FULL, "context", dollop_session_logits(session, ids, 17, logits, vocab));
    ids[1] = vocab;
    EXPECT(DOLLOP_INVALID, "vocabulary", dollop_session_logits(session, ids, 2, logits, vocab));
    EXPECT(DOLLOP_INVALID, "empty", dollop_session_generate(session, NULL, 0, NULL, NULL, NULL));
    size_t count = 99;
    EXPECT(DOLLOP_NULL, "count", dollop_session_tokens(session, NULL, 0, NULL));
    OK(dollop_session_logits(session, ids, 1, logits, vocab));
    EXPECT(DOLLOP_TOO_SMALL, "ids", dollop_session_tokens(session, ids, 0, &count));
    CHECK(count == 99);
    free(logits);
    OK(dollop_session_free(session));
}

int main(int argc, char **argv) {
    const struct fixtures f = fixtures(argc, argv);
    CHECK(strcmp(dollop_last_error(), "") == 0);
    CHECK(strcmp(dollop_status_name(DOLLOP_BUDGET), "DOLLOP_BUDGET") == 0);
    CHECK(strcmp(dollop_status_name((dollop_status)12345), "unknown status") == 0);
    opening(&f);
    sizes(&f);

    dollop_engine *engine = NULL;
    OK(dollop_engine_open(f.model, NULL, &engine));
    NEW(dollop_model_info, info);
    OK(dollop_engine_info(engine, &info));
    handles(engine);
    texts(engine, info.vocab);
    generating(engine, info.vocab);
    plain(engine, info.vocab);
    dollop_plan *plan = NULL;
    NEW(dollop_plan_level, level);
    OK(dollop_engine_plan(engine, &plan));
    EXPECT(DOLLOP_INVALID, "level 99", dollop_plan_level_at(plan, 99, &level));
    OK(dollop_plan_free(plan));
    OK(dollop_engine_free(engine));

    NEW(dollop_engine_options, o);
    o.cache_folder = f.cache;
    OK(dollop_engine_open(f.broken, &o, &engine));
    dollop_session *session = NULL;
    OK(dollop_session_new(engine, NULL, &session));
    char *text = (char *)1;
    EXPECT(DOLLOP_NOT_FINITE, "finite", dollop_session_complete(session, "h", NULL, &text, NULL));
    CHECK(text == (char *)1);
    OK(dollop_session_free(session));
    OK(dollop_engine_free(engine));
    return finished();
}
