/* Successful calls: opening, planning, chatting, completing, tokens, logits, cancelling, statistics, devices, the log. */
#include "expect.h"
#include <pthread.h>

struct heard {
    char text[4096];
    size_t len;
    int tokens, prefills, rests, stop_after;
    dollop_chat *chat;       /* Freed by the callback, if not NULL. */
    dollop_session *session; /* Cancelled by the callback, if not NULL. */
};

static int whole_characters(const char *text, size_t len) {
    for (size_t i = 0; i < len;) {
        const unsigned char c = (unsigned char)text[i];
        const size_t n = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
        if (c >= 0x80 && c < 0xc0) return 0;
        for (size_t k = 1; k < n; k++)
            if (i + k >= len || ((unsigned char)text[i + k] & 0xc0) != 0x80) return 0;
        i += n;
    }
    return 1;
}

static int hear(const dollop_event *event, void *user_data) {
    struct heard *h = user_data;
    CHECK(event->text && strlen(event->text) == event->text_len && whole_characters(event->text, event->text_len));
    if (event->kind == DOLLOP_EVENT_PREFILL) {
        CHECK(event->done > 0 && event->done <= event->total);
        h->prefills++;
        return 0;
    }
    CHECK(h->len + event->text_len < sizeof h->text);
    memcpy(h->text + h->len, event->text, event->text_len + 1);
    h->len += event->text_len;
    h->rests += event->kind == DOLLOP_EVENT_REST;
    h->tokens += event->kind == DOLLOP_EVENT_TOKEN;
    if (h->chat) OK(dollop_chat_free(h->chat));
    h->chat = NULL;
    if (h->session) OK(dollop_session_cancel(h->session));
    return h->stop_after > 0 && h->tokens >= h->stop_after;
}

static void chatting(dollop_engine *engine) {
    dollop_chat *chat = NULL;
    NEW(dollop_chat_options, o);
    o.system = "You are brief.";
    o.context = 512;
    o.overflow = DOLLOP_OVERFLOW_SLIDE;
    /* With AMX, calls of 16 or more tokens round differently (docs/cpu.md), and regenerating reads the last token alone. */
    o.chunk = 8;
    OK(dollop_chat_new(engine, &o, &chat));
    NEW(dollop_sampling, greedy);
    OK(dollop_engine_sampling(engine, &greedy));
    greedy.temperature = 0;
    NEW(dollop_generate_options, g);
    NEW(dollop_outcome, outcome);
    struct heard h = {0};
    g.sampling = &greedy;
    g.on_event = hear;
    g.user_data = &h;
    g.max_tokens = 32;
    char *text = NULL;
    OK(dollop_chat_send(chat, "What is the capital of France?", &g, &text, &outcome));
    CHECK(strstr(text, "Paris") && strcmp(text, h.text) == 0 && h.prefills > 0);
    CHECK(outcome.generated_tokens == (uint32_t)h.tokens && outcome.prompt_tokens > 10);
    CHECK(outcome.prefill_seconds > 0 && outcome.decode_seconds > 0);

    /* The same answer again, then another question, which reuses the cache. */
    char *again = NULL;
    OK(dollop_chat_regenerate(chat, &g, &again, &outcome));
    CHECK(strcmp(text, again) == 0 && outcome.reused_tokens > 0);
    dollop_text_free(text);
    dollop_text_free(again);

    struct heard two = {.stop_after = 2};
    g.user_data = &two;
    OK(dollop_chat_send(chat, "And of Italy?", &g, &text, &outcome));
    CHECK(two.tokens == 2 && outcome.stop == DOLLOP_STOP_CANCELLED && outcome.reused_tokens > 0);
    dollop_text_free(text);

    char *json = NULL;
    OK(dollop_chat_messages_json(chat, &json));
    CHECK(strstr(json, "You are brief.") && strstr(json, "capital of France") && strstr(json, "assistant"));
    dollop_text_free(json);
    const dollop_message messages[] = {{"user", "Say a word."}, {"assistant", "Word."}};
    OK(dollop_chat_set_messages(chat, messages, 2));
    OK(dollop_chat_set_time(chat, 1764374400));
    OK(dollop_chat_set_variables(chat, "{\"enable_thinking\": false}"));
    OK(dollop_chat_messages_json(chat, &json));
    CHECK(!strstr(json, "France") && strstr(json, "Word."));
    dollop_text_free(json);
    OK(dollop_chat_reset(chat));
    NEW(dollop_session_info, info);
    OK(dollop_chat_get(chat, &info));
    CHECK(info.context == 512 && info.tokens > 0 && info.processed_tokens > 0);

    /* Freed by its own callback: the call succeeds, and the handle is closed. */
    struct heard freed = {.chat = chat};
    g.user_data = &freed;
    OK(dollop_chat_send(chat, "Tell me a story.", &g, NULL, &outcome));
    CHECK(outcome.stop == DOLLOP_STOP_CANCELLED && freed.tokens >= 1);
    EXPECT(DOLLOP_CLOSED, "chat", dollop_chat_reset(chat));

    char *rendered = NULL;
    OK(dollop_engine_render(engine, messages, 1, 1, &rendered));
    CHECK(strstr(rendered, "Say a word."));
    dollop_text_free(rendered);
}

static void sessions(dollop_engine *engine) {
    NEW(dollop_model_info, m);
    OK(dollop_engine_info(engine, &m));
    CHECK(m.vocab > 1000 && m.layers > 1 && m.experts > 1 && m.has_chat_template == 1 && m.parameters > m.active_parameters);
    uint32_t ids[64];
    size_t count = 0, same = 0;
    const char *prompt = "The capital of France is";
    OK(dollop_engine_tokenize(engine, prompt, 0, NULL, 0, &count));
    CHECK(count > 2 && count < 64);
    OK(dollop_engine_tokenize(engine, prompt, 0, ids, 64, &same));
    CHECK(same == count);
    char *text = NULL;
    OK(dollop_engine_detokenize(engine, ids, count, 0, &text));
    CHECK(strcmp(text, prompt) == 0);
    dollop_text_free(text);

    dollop_session *session = NULL;
    NEW(dollop_session_options, o);
    o.context = 128;
    o.chunk = 32;
    OK(dollop_session_new(engine, &o, &session));
    float *logits = malloc(2 * m.vocab * sizeof *logits);
    OK(dollop_session_logits(session, ids, count, logits, m.vocab));
    uint32_t best = 0;
    for (uint32_t i = 1; i < m.vocab; i++)
        if (logits[i] > logits[best]) best = i;
    OK(dollop_session_rewind(session, count - 1));
    OK(dollop_session_logits(session, ids + count - 1, 1, logits + m.vocab, m.vocab));
    NEW(dollop_session_info, info);
    OK(dollop_session_get(session, &info));
    CHECK(info.tokens == count && info.processed_tokens == count + 1 && info.context == 128);

    /* Greedy generation begins with the likeliest token. */
    NEW(dollop_sampling, greedy);
    greedy.temperature = 0;
    NEW(dollop_generate_options, g);
    NEW(dollop_outcome, outcome);
    g.sampling = &greedy;
    g.max_tokens = 1;
    OK(dollop_session_generate(session, ids, count, &g, NULL, &outcome));
    CHECK(outcome.stop == DOLLOP_STOP_MAX_TOKENS && outcome.reused_tokens == count - 1);
    char *first = NULL;
    OK(dollop_engine_detokenize(engine, &best, 1, 0, &first));
    OK(dollop_session_complete(session, prompt, &g, &text, &outcome));
    CHECK(strcmp(first, text) == 0);
    dollop_text_free(first);
    dollop_text_free(text);

    /* A stop string ends the answer; every sampling option is accepted. */
    const char *stop[] = {"Paris"};
    g.stop = stop;
    g.stop_count = 1;
    g.max_tokens = 64;
    OK(dollop_session_complete(session, prompt, &g, &text, &outcome));
    CHECK(outcome.stop == DOLLOP_STOP_TEXT && !strstr(text, "Paris"));
    dollop_text_free(text);
    const dollop_logit_bias biases[] = {{best, -1e9f}, {42, 1e9f}};
    const char *breakers[] = {"\n"};
    dollop_sampling all = {.struct_size = sizeof all, .seed = 7, .temperature = 0.8f, .top_k = 20, .top_p = 0.9f,
        .min_p = 0.01f, .typical_p = 0.9f, .top_n_sigma = 3, .xtc_probability = 0.1f, .xtc_threshold = 0.2f,
        .repeat_penalty = 1.1f, .repeat_last_n = 32, .presence_penalty = 0.1f, .frequency_penalty = 0.1f,
        .dry_multiplier = 0.5f, .dry_base = 1.5f, .dry_allowed_length = 2, .dry_last_n = 32, .mirostat = 0,
        .mirostat_tau = 5, .mirostat_eta = 0.1f, .dry_breakers = breakers, .dry_breaker_count = 1,
        .logit_bias = biases, .logit_bias_count = 2, .chain = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"};
    g.sampling = &all;
    g.stop = NULL;
    g.max_tokens = 3;
    OK(dollop_session_complete(session, prompt, &g, NULL, &outcome));
    uint32_t kept[128];
    OK(dollop_session_tokens(session, kept, 128, &same));
    CHECK(same == count + 2 && kept[count] == 42 && kept[count + 1] == 42);
    all.mirostat = DOLLOP_MIROSTAT_V2;
    all.logit_bias_count = 0;
    OK(dollop_session_complete(session, prompt, &g, NULL, &outcome));
    OK(dollop_session_tokens(session, kept, 128, &same));
    CHECK(kept[count] != 42);

    struct heard h = {.session = session};
    g.on_event = hear;
    g.user_data = &h;
    g.max_tokens = 100;
    OK(dollop_session_complete(session, prompt, &g, NULL, &outcome));
    CHECK(outcome.stop == DOLLOP_STOP_CANCELLED && h.tokens == 1);
    OK(dollop_session_cancel(session));
    free(logits);
    OK(dollop_session_free(session));
}

/* State shared by two threads. */
struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int running;
    dollop_session *session;
};

static int announce(const dollop_event *event, void *user_data) {
    struct meeting *m = user_data;
    pthread_mutex_lock(&m->lock);
    m->running += event->kind == DOLLOP_EVENT_TOKEN;
    pthread_cond_broadcast(&m->moved);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static void *interrupt(void *user_data) {
    struct meeting *m = user_data;
    pthread_mutex_lock(&m->lock);
    while (m->running == 0) pthread_cond_wait(&m->moved, &m->lock);
    pthread_mutex_unlock(&m->lock);
    /* The session is busy, errors of other threads are not visible here, and cancelling works. */
    CHECK(strcmp(dollop_last_error(), "") == 0);
    EXPECT(DOLLOP_BUSY, "not returned", dollop_session_rewind(m->session, 0));
    OK(dollop_session_cancel(m->session));
    return NULL;
}

static void threads(dollop_engine *engine) {
    struct meeting m = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, NULL};
    OK(dollop_session_new(engine, NULL, &m.session));
    NEW(dollop_generate_options, g);
    NEW(dollop_outcome, outcome);
    g.on_event = announce;
    g.user_data = &m;
    g.max_tokens = 4000;
    g.ignore_eos = 1;
    pthread_t other;
    CHECK(pthread_create(&other, NULL, interrupt, &m) == 0);
    EXPECT(DOLLOP_NULL, "session", dollop_session_rewind(NULL, 0));
    OK(dollop_session_complete(m.session, "Once upon a time", &g, NULL, &outcome));
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(outcome.stop == DOLLOP_STOP_CANCELLED && m.running > 0);
    OK(dollop_session_free(m.session));
}

static void streaming(const char *model) {
    NEW(dollop_engine_options, o);
    o.precision = DOLLOP_PRECISION_EXACT;
    o.level = 4;
    o.context = 256;
    o.threads = 2;
    dollop_plan *plan = NULL;
    OK(dollop_plan_new(model, &o, &plan));
    NEW(dollop_plan_info, p);
    OK(dollop_plan_get(plan, &p));
    CHECK(!p.streaming && p.level_count > 0 && p.total_bytes > p.dense_bytes && p.context == 256);
    OK(dollop_plan_free(plan));
    NEW(dollop_sampling, greedy);
    greedy.temperature = 0;
    NEW(dollop_generate_options, g);
    g.sampling = &greedy;
    g.max_tokens = 12;
    char *texts[2] = {NULL, NULL};
    for (int streamed = 0; streamed < 2; streamed++) {
        if (streamed) o.memory_bytes = p.smallest_bytes + (1 << 20);
        dollop_engine *engine = NULL;
        OK(dollop_engine_open(model, &o, &engine));
        dollop_session *session = NULL;
        OK(dollop_session_new(engine, NULL, &session));
        OK(dollop_engine_plan(engine, &plan));
        /* The session and the plan outlive their engine. */
        NEW(dollop_stats, s);
        OK(dollop_session_complete(session, "The capital of France is", &g, &texts[streamed], NULL));
        OK(dollop_engine_stats(engine, &s));
        CHECK((int)s.streaming == streamed && (s.evictions > 0) == streamed && (s.bytes_wanted > 0) == streamed);
        char *json = NULL;
        OK(dollop_engine_stats_json(engine, &json));
        CHECK(strstr(json, streamed ? "\"evictions\"" : "\"stream\":null"));
        dollop_text_free(json);
        OK(dollop_engine_free(engine));
        OK(dollop_session_complete(session, "And of Italy", &g, NULL, NULL));
        OK(dollop_session_free(session));
        NEW(dollop_plan_level, level);
        NEW(dollop_plan_info, info);
        OK(dollop_plan_get(plan, &info));
        CHECK((int)info.streaming == streamed && info.level_count > 0);
        OK(dollop_plan_level_at(plan, info.level_count - 1, &level));
        CHECK(level.bits == 4 && level.touched_bytes > 0 && (level.resident < 1) == streamed);
        OK(dollop_plan_json(plan, &json));
        CHECK(strstr(json, "\"total_bytes\"") && strstr(json, "\"levels\""));
        dollop_text_free(json);
        OK(dollop_plan_free(plan));
    }
    CHECK(strcmp(texts[0], texts[1]) == 0);
    dollop_text_free(texts[0]);
    dollop_text_free(texts[1]);
}

static int count_progress(const dollop_progress *progress, void *user_data) {
    CHECK(strlen(progress->stage) > 0 && progress->done <= progress->total);
    (*(int *)user_data)++;
    return 0;
}

/* A foreign model is converted once. Its characters of several bytes, one token per byte, arrive whole. */
static void foreign(const struct fixtures *f) {
    int asked = 0;
    NEW(dollop_engine_options, o);
    o.cache_folder = f->cache;
    o.on_progress = count_progress;
    o.progress_user_data = &asked;
    for (int i = 0; i < 2; i++) {
        dollop_engine *engine = NULL;
        dollop_chat *chat = NULL;
        OK(dollop_engine_open(f->talker, &o, &engine));
        CHECK(i == 0 ? asked > 0 : asked == 0);
        asked = 0;
        OK(dollop_chat_new(engine, NULL, &chat));
        struct heard h = {0};
        NEW(dollop_generate_options, g);
        g.on_event = hear;
        g.user_data = &h;
        char *text = NULL;
        OK(dollop_chat_send(chat, "hello", &g, &text, NULL));
        CHECK(strcmp(text, "h\xc3\xa9 \xf0\x9f\x99\x82") == 0 && strcmp(text, h.text) == 0 && h.tokens == 8);
        dollop_text_free(text);
        OK(dollop_chat_free(chat));
        OK(dollop_engine_free(engine));
    }
}

/* Counts messages by level. Nothing here logs on other threads. */
static void count_log(uint32_t level, const char *target, const char *message, void *user_data) {
    int *messages = user_data;
    CHECK(level >= DOLLOP_LOG_ERROR && level <= DOLLOP_LOG_DEBUG);
    CHECK(strlen(message) > 0 && (level <= DOLLOP_LOG_WARN || strncmp(target, "dollop", 6) == 0));
    messages[level]++;
}

static void logging(const struct fixtures *f) {
    int messages[DOLLOP_LOG_TRACE + 1] = {0};
    for (int i = 0; i < 2; i++) {
        dollop_engine *engine = NULL;
        OK(dollop_set_log(i == 0 ? count_log : NULL, messages, DOLLOP_LOG_DEBUG));
        OK(dollop_engine_open(f->model, NULL, &engine));
        OK(dollop_engine_free(engine));
        CHECK(messages[DOLLOP_LOG_INFO] == 1 && messages[DOLLOP_LOG_DEBUG] > 0);
    }
}

static void devices(void) {
    size_t count = 99, found = 99;
    OK(dollop_devices(NULL, 0, &count));
    CHECK(count < 99);
    dollop_device list[16];
    OK(dollop_devices(list, 16, &found));
    CHECK(found == count);
    for (size_t i = 0; i < found; i++) CHECK(list[i].index == i && strlen(list[i].name) > 0 && strlen(list[i].api) > 0);
    char *json = NULL;
    OK(dollop_devices_json(&json));
    CHECK(json[0] == '[');
    dollop_text_free(json);
}

int main(int argc, char **argv) {
    const struct fixtures f = fixtures(argc, argv);
    CHECK(dollop_abi_version() == DOLLOP_ABI_VERSION);
    CHECK(strchr(dollop_version(), '.'));
    dollop_engine *engine = NULL;
    NEW(dollop_engine_options, o);
    o.threads = 2;
    OK(dollop_engine_open(f.model, &o, &engine));
    char *json = NULL;
    OK(dollop_engine_info_json(engine, &json));
    CHECK(strstr(json, "\"architecture\"") && strstr(json, "\"note\""));
    dollop_text_free(json);
    chatting(engine);
    sessions(engine);
    threads(engine);
    OK(dollop_engine_free(engine));
    streaming(f.model);
    foreign(&f);
    devices();
    logging(&f);
    return finished();
}
