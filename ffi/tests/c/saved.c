/* Saved sessions and chats, forks, changes of the memory budget, and models in open files, with every status that only these
   functions return. */
#define _POSIX_C_SOURCE 200809L
#include "expect.h"
#include <fcntl.h>
#include <unistd.h>

#define PROMPT "The capital of France is"

static dollop_sampling greedy;

static dollop_generate_options tokens(uint32_t count) {
    NEW(dollop_generate_options, g);
    g.sampling = &greedy;
    g.max_tokens = count;
    g.ignore_eos = 1;
    return g;
}

/* Completes the prompt in a new session. */
static char *text_of(dollop_engine *engine, const dollop_generate_options *g) {
    dollop_session *session = NULL;
    char *text = NULL;
    OK(dollop_session_new(engine, NULL, &session));
    OK(dollop_session_complete(session, PROMPT, g, &text, NULL));
    OK(dollop_session_free(session));
    return text;
}

/* A model in the middle of a file, after 128 other bytes. */
static void descriptors(const struct fixtures *f, const char *expected) {
    dollop_engine *engine = NULL;
    dollop_plan *plan = NULL;
    EXPECT(DOLLOP_INVALID, "descriptor", dollop_engine_open_file(-1, 0, 0, NULL, &engine));
    EXPECT(DOLLOP_IO, "descriptor", dollop_engine_open_file(9999, 0, 0, NULL, &engine));
    char path[1024];
    snprintf(path, sizeof path, "%s/package", f->cache);
    const int to = open(path, O_RDWR | O_CREAT, 0600), from = open(f->model, O_RDONLY);
    CHECK(to >= 0 && from >= 0);
    char bytes[1 << 16] = {0};
    CHECK(write(to, bytes, 128) == 128);
    uint64_t length = 0;
    for (ssize_t n; (n = read(from, bytes, sizeof bytes)) > 0; length += (uint64_t)n) CHECK(write(to, bytes, (size_t)n) == n);
    EXPECT(DOLLOP_INVALID, "multiple of 64", dollop_engine_open_file(to, 127, length, NULL, &engine));
    EXPECT(DOLLOP_INVALID, "bytes", dollop_engine_open_file(to, 128, length + 1, NULL, &engine));
    EXPECT(DOLLOP_INVALID, "bytes", dollop_plan_new_file(to, UINT64_MAX, 0, NULL, &plan));
    EXPECT(DOLLOP_MALFORMED, "", dollop_plan_new_file(to, 0, 0, NULL, &plan));
    EXPECT(DOLLOP_NULL, "engine", dollop_engine_open_file(to, 128, 0, NULL, NULL));
    EXPECT(DOLLOP_NULL, "plan", dollop_plan_new_file(to, 128, 0, NULL, NULL));
    NEW(dollop_engine_options, o);
    o.threads = 2;
    o.memory_bytes = 1;
    EXPECT(DOLLOP_BUDGET, "too small", dollop_engine_open_file(to, 128, 0, &o, &engine));
    CHECK(engine == NULL && plan == NULL);
    o.memory_bytes = 0;
    OK(dollop_plan_new_file(to, 128, 0, &o, &plan));
    OK(dollop_plan_free(plan));
    OK(dollop_engine_open_file(to, 128, length, &o, &engine));
    CHECK(close(to) == 0 && close(from) == 0 && unlink(path) == 0);
    const dollop_generate_options g = tokens(8);
    char *text = text_of(engine, &g);
    CHECK(strcmp(text, expected) == 0);
    dollop_text_free(text);
    OK(dollop_engine_free(engine));
}

static dollop_session *ours;

static int busy(const dollop_event *event, void *user_data) {
    (void)event;
    dollop_session *fork = NULL;
    EXPECT(DOLLOP_BUSY, "not returned", dollop_session_save(ours, user_data, NULL));
    EXPECT(DOLLOP_BUSY, "not returned", dollop_session_fork(ours, &fork));
    CHECK(fork == NULL);
    return 1;
}

static void sessions(const struct fixtures *f, dollop_engine *engine, uint32_t vocab) {
    char path[1024];
    snprintf(path, sizeof path, "%s/session", f->cache);
    dollop_session *loaded = NULL, *fork = NULL;
    OK(dollop_session_new(engine, NULL, &ours));
    dollop_generate_options g = tokens(8);
    OK(dollop_session_complete(ours, PROMPT, &g, NULL, NULL));
    uint64_t bytes = 0;
    OK(dollop_session_save(ours, path, &bytes));
    CHECK(bytes > 1000);
    OK(dollop_session_save(ours, path, NULL));
    OK(dollop_session_fork(ours, &fork));
    OK(dollop_session_load(engine, path, NULL, &loaded));

    /* All three continue with bit-identical logits. */
    dollop_session *all[3] = {ours, loaded, fork};
    float *logits[3];
    const uint32_t next = 7;
    for (int i = 0; i < 3; i++) {
        logits[i] = malloc(vocab * sizeof(float));
        OK(dollop_session_logits(all[i], &next, 1, logits[i], vocab));
        CHECK(memcmp(logits[0], logits[i], vocab * sizeof(float)) == 0);
    }
    for (int i = 0; i < 3; i++) free(logits[i]);
    OK(dollop_session_free(loaded));
    OK(dollop_session_free(fork));
    loaded = fork = NULL;

    g.on_event = busy;
    g.user_data = path;
    OK(dollop_session_complete(ours, PROMPT, &g, NULL, NULL));

    char nowhere[1100];
    snprintf(nowhere, sizeof nowhere, "%s/below-a-file", f->garbage);
    EXPECT(DOLLOP_IO, "garbage", dollop_session_save(ours, nowhere, &bytes));
    EXPECT(DOLLOP_NULL, "path", dollop_session_save(ours, NULL, &bytes));
    EXPECT(DOLLOP_IO, "below-a-file", dollop_session_load(engine, nowhere, NULL, &loaded));
    EXPECT(DOLLOP_NULL, "path", dollop_session_load(engine, NULL, NULL, &loaded));
    EXPECT(DOLLOP_NULL, "session", dollop_session_load(engine, path, NULL, NULL));
    EXPECT(DOLLOP_NULL, "fork", dollop_session_fork(ours, NULL));
    dollop_chat *chat = NULL;
    EXPECT(DOLLOP_MALFORMED, "without a conversation", dollop_chat_load(engine, path, NULL, &chat));
    NEW(dollop_session_options, small);
    small.context = 4;
    EXPECT(DOLLOP_CONTEXT_FULL, "context", dollop_session_load(engine, path, &small, &loaded));
    EXPECT(DOLLOP_MALFORMED, "cut", dollop_session_load(engine, f->garbage, NULL, &loaded));

    /* A file of another model, and one with one flipped bit. */
    dollop_engine *talker = NULL;
    NEW(dollop_engine_options, o);
    o.cache_folder = f->cache;
    OK(dollop_engine_open(f->talker, &o, &talker));
    EXPECT(DOLLOP_UNSUPPORTED, "another model", dollop_session_load(talker, path, NULL, &loaded));
    OK(dollop_engine_free(talker));
    FILE *file = fopen(path, "r+b");
    CHECK(file && fseek(file, -5, SEEK_END) == 0);
    const int last = fgetc(file);
    CHECK(fseek(file, -1, SEEK_CUR) == 0 && fputc(last ^ 1, file) == (last ^ 1) && fclose(file) == 0);
    EXPECT(DOLLOP_MALFORMED, "damaged", dollop_session_load(engine, path, NULL, &loaded));
    CHECK(loaded == NULL && chat == NULL);
    OK(dollop_session_free(ours));
}

static void chats(const struct fixtures *f, dollop_engine *engine) {
    char path[1024];
    snprintf(path, sizeof path, "%s/chat", f->cache);
    dollop_chat *chat = NULL, *loaded = NULL;
    NEW(dollop_chat_options, c);
    c.system = "Answer in few words.";
    OK(dollop_chat_new(engine, &c, &chat));
    const dollop_generate_options g = tokens(4);
    OK(dollop_chat_send(chat, "What is the capital of France?", &g, NULL, NULL));
    OK(dollop_chat_save(chat, path, NULL));
    OK(dollop_chat_load(engine, path, NULL, &loaded));
    char *said[2] = {NULL, NULL}, *answers[2] = {NULL, NULL};
    dollop_chat *both[2] = {chat, loaded};
    for (int i = 0; i < 2; i++) {
        NEW(dollop_outcome, outcome);
        OK(dollop_chat_messages_json(both[i], &said[i]));
        OK(dollop_chat_send(both[i], "And of Italy?", &g, &answers[i], &outcome));
        CHECK(outcome.reused_tokens > 0);
    }
    CHECK(strcmp(said[0], said[1]) == 0 && strstr(said[1], "few words") && strcmp(answers[0], answers[1]) == 0);
    for (int i = 0; i < 2; i++) {
        dollop_text_free(said[i]);
        dollop_text_free(answers[i]);
    }
    EXPECT(DOLLOP_IO, "/", dollop_chat_save(chat, f->cache, NULL));
    EXPECT(DOLLOP_NULL, "path", dollop_chat_save(chat, NULL, NULL));
    EXPECT(DOLLOP_NULL, "chat", dollop_chat_load(engine, path, NULL, NULL));
    OK(dollop_chat_free(chat));
    OK(dollop_chat_free(loaded));
}

struct squeeze {
    dollop_engine *engine;
    uint64_t smallest, largest, given;
    uint32_t calls;
};

/* Resizes the cache with each token. */
static int resize(const dollop_event *event, void *user_data) {
    struct squeeze *s = user_data;
    if (event->kind != DOLLOP_EVENT_TOKEN) return 0;
    uint64_t given = 0;
    if (s->calls % 2) {
        OK(dollop_engine_trim(s->engine, s->calls / 2 % 4, &given));
    } else {
        OK(dollop_engine_set_memory(s->engine, s->calls % 4 ? s->smallest : s->largest, &given));
    }
    s->given += given;
    s->calls++;
    return 0;
}

static void memory(const struct fixtures *f) {
    NEW(dollop_engine_options, o);
    o.precision = DOLLOP_PRECISION_EXACT;
    o.level = 4;
    o.context = 256;
    o.threads = 2;
    dollop_plan *plan = NULL;
    NEW(dollop_plan_info, p);
    OK(dollop_plan_new(f->model, &o, &plan));
    OK(dollop_plan_get(plan, &p));
    CHECK(!p.streaming);
    OK(dollop_plan_free(plan));
    o.always_stream = 1;
    o.memory_bytes = p.total_bytes + (64 << 20);
    OK(dollop_plan_new(f->model, &o, &plan));
    NEW(dollop_plan_info, always);
    OK(dollop_plan_get(plan, &always));
    CHECK(always.streaming);
    OK(dollop_plan_free(plan));
    o.always_stream = 0;
    struct squeeze s = {NULL, p.smallest_bytes + (1 << 20), p.total_bytes - (1 << 20), 0, 0};
    o.memory_bytes = s.largest;
    OK(dollop_engine_open(f->model, &o, &s.engine));
    dollop_generate_options g = tokens(16);
    char *calm = text_of(s.engine, &g);
    g.on_event = resize;
    g.user_data = &s;
    char *squeezed = text_of(s.engine, &g);
    CHECK(strcmp(calm, squeezed) == 0 && s.calls == 16 && s.given > 0);
    dollop_text_free(calm);
    dollop_text_free(squeezed);

    uint64_t given = 99;
    EXPECT(DOLLOP_BUDGET, "too small", dollop_engine_set_memory(s.engine, 1, &given));
    EXPECT(DOLLOP_INVALID, "level 4", dollop_engine_trim(s.engine, 4, &given));
    EXPECT(DOLLOP_NULL, "engine", dollop_engine_trim(NULL, DOLLOP_TRIM_NORMAL, &given));
    CHECK(given == 99);
    OK(dollop_engine_set_memory(s.engine, s.largest, NULL));
    OK(dollop_engine_trim(s.engine, DOLLOP_TRIM_COMPLETE, NULL));
    OK(dollop_engine_free(s.engine));
}

int main(int argc, char **argv) {
    const struct fixtures f = fixtures(argc, argv);
    OK(dollop_sampling_init(&greedy, sizeof greedy));
    greedy.temperature = 0;
    dollop_engine *engine = NULL;
    NEW(dollop_engine_options, o);
    o.threads = 2;
    OK(dollop_engine_open(f.model, &o, &engine));
    NEW(dollop_model_info, info);
    OK(dollop_engine_info(engine, &info));
    const dollop_generate_options g = tokens(8);
    char *text = text_of(engine, &g);
    sessions(&f, engine, info.vocab);
    chats(&f, engine);
    descriptors(&f, text);
    dollop_text_free(text);
    OK(dollop_engine_free(engine));
    memory(&f);
    return finished();
}
