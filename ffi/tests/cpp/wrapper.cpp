// dollop.hpp: every function once, exceptions through callbacks, moves, and typed errors.
#include <dollop.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

static std::atomic<int> checks;
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        checks++;                                                                                            \
        if (!(condition)) {                                                                                  \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                             \
            std::exit(1);                                                                                    \
        }                                                                                                    \
    } while (0)

template <typename F> static dollop_status status_of(F &&call) {
    try {
        call();
    } catch (const dollop::error &e) {
        CHECK(std::string(e.what()).size() > 5);
        return e.status();
    }
    return DOLLOP_OK;
}

struct Thrown {
    int value;
};

static_assert(!std::is_copy_constructible_v<dollop::Engine> && std::is_nothrow_move_constructible_v<dollop::Engine>);
static_assert(!std::is_copy_constructible_v<dollop::Chat> && std::is_nothrow_move_assignable_v<dollop::Chat>);

static void conversations(const dollop::Engine &engine, const std::string &cache) {
    dollop::Chat::Options options;
    options.context = 512;
    options.system = "You are brief.";
    // With AMX, calls of 16 or more tokens round differently (docs/cpu.md).
    options.chunk = 8;
    dollop::Chat chat(engine, options);
    auto greedy = engine.sampling();
    greedy.temperature = 0;
    dollop::GenerateOptions g;
    g.sampling = &greedy;
    g.max_tokens = 32;
    std::string heard;
    g.on_event = [&](const dollop::Event &e) {
        heard += e.text;
        return true;
    };
    const auto first = chat.send("What is the capital of France?", g);
    CHECK(first.text == heard && first.text.find("Paris") != std::string::npos && first.generated_tokens > 0);
    CHECK(chat.regenerate(g).text == first.text);

    // An exception of a callback reaches the caller, and the chat stays usable.
    g.on_event = [](const dollop::Event &e) -> bool {
        if (e.kind == DOLLOP_EVENT_TOKEN) throw Thrown{7};
        return true;
    };
    int caught = 0;
    try {
        chat.send("And of Italy?", g);
    } catch (const Thrown &t) {
        caught = t.value;
    }
    CHECK(caught == 7);
    g.on_event = [](const dollop::Event &e) { return e.kind != DOLLOP_EVENT_TOKEN; };
    CHECK(chat.send("And of Spain?", g).stop == DOLLOP_STOP_CANCELLED);

    dollop::Chat moved = std::move(chat);
    CHECK(moved.messages_json().find("Spain") != std::string::npos && chat.get() == nullptr);
    CHECK(status_of([&] { chat.reset(); }) == DOLLOP_NULL);
    moved.set_messages({{"user", "Say a word."}, {"assistant", "Word."}});
    moved.set_variables("{\"enable_thinking\": false}");
    moved.set_time(1764374400);
    CHECK(moved.messages_json().find("Word.") != std::string::npos && moved.info().context == 512);
    CHECK(status_of([&] { moved.set_variables("no"); }) == DOLLOP_INVALID);
    const std::string path = cache + "/chat";
    CHECK(moved.save(path) > 0 && dollop::Chat::load(engine, path).messages_json() == moved.messages_json());
    CHECK(status_of([&] { dollop::Session::load(engine, cache); }) == DOLLOP_MALFORMED);
    moved.reset();
}

static void timelines(const dollop::Engine &engine, const std::string &cache) {
    const auto info = engine.info();
    const auto ids = engine.tokenize("The capital of France is", false);
    CHECK(ids.size() > 2 && engine.detokenize(ids) == "The capital of France is");
    CHECK(engine.tokenize("", false).empty() && engine.detokenize({}).empty());
    CHECK(engine.render({{"user", "Hello?"}}).find("Hello?") != std::string::npos);
    auto options = dollop::session_options();
    options.context = 64;
    dollop::Session session(engine, options);
    CHECK(session.tokens().empty());
    const auto logits = session.logits(ids, info.vocab);
    std::uint32_t best = 0;
    for (std::uint32_t i = 1; i < info.vocab; i++)
        if (logits[i] > logits[best]) best = i;
    CHECK(session.tokens() == ids && session.info().tokens == ids.size());
    auto greedy = dollop::sampling();
    greedy.temperature = 0;
    dollop::GenerateOptions g;
    g.sampling = &greedy;
    g.max_tokens = 1;
    CHECK(session.generate(ids, g).text == engine.detokenize({best}));
    g.stop = {"Paris"};
    g.max_tokens = 32;
    CHECK(session.complete("The capital of France is", g).stop == DOLLOP_STOP_TEXT);
    CHECK(status_of([&] { session.logits(ids, info.vocab - 1); }) == DOLLOP_TOO_SMALL);
    session.rewind(1);
    CHECK(session.tokens().size() == 1);
    const std::string path = cache + "/session";
    CHECK(session.save(path) > 0 && dollop::Session::load(engine, path).tokens() == session.tokens());
    CHECK(session.fork().tokens() == session.tokens());

    // Cancelled from another thread, which the first token starts.
    std::thread other;
    g.stop = {};
    g.ignore_eos = true;
    g.max_tokens = 60;
    g.on_event = [&](const dollop::Event &e) {
        if (e.kind == DOLLOP_EVENT_TOKEN && !other.joinable()) {
            other = std::thread([&] { session.cancel(); });
            other.join();
            other = std::thread([] {});
        }
        return true;
    };
    const auto outcome = session.complete("Once", g);
    other.join();
    CHECK(outcome.stop == DOLLOP_STOP_CANCELLED && outcome.generated_tokens == 1);
}

// Other threads log too, so the messages are kept under a lock.
static void logging(const std::string &model, const dollop::EngineOptions &options) {
    struct Heard {
        std::mutex lock;
        std::vector<std::string> opened;
        int debug = 0, refused = 0;
    };
    const auto heard = std::make_shared<Heard>();
    const auto hears = [heard](std::uint32_t level, std::string_view target, std::string_view message) {
        const auto refused = status_of([] { dollop::set_log(nullptr); }) == DOLLOP_BUSY;
        const std::lock_guard<std::mutex> lock(heard->lock);
        heard->refused += refused;
        heard->debug += level == DOLLOP_LOG_DEBUG;
        if (level == DOLLOP_LOG_INFO && target.substr(0, 8) == "dollop::") heard->opened.emplace_back(message);
        throw Thrown{9};
    };
    CHECK(status_of([&] { dollop::set_log(hears, 6); }) == DOLLOP_INVALID && heard.use_count() == 2);
    dollop::set_log(hears);
    dollop::Engine(model, options);
    CHECK(heard->opened.size() == 1 && heard->opened[0].find(model) != std::string::npos);
    CHECK(heard->refused > 0 && heard->debug == 0);
    dollop::set_log(hears, DOLLOP_LOG_DEBUG);
    dollop::Engine(model, options);
    CHECK(heard->opened.size() == 2 && heard->debug > 0);
    // After the log is reset, the only owners are this function's pointer and its lambda.
    dollop::set_log(nullptr);
    CHECK(heard.use_count() == 2);
    dollop::Engine(model, options);
    CHECK(heard->opened.size() == 2);
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    const std::string model = argv[1], talker = argv[2], cache = argv[5];
    CHECK(dollop::version().find('.') != std::string::npos);
    {
        auto options = dollop::engine_options();
        options.threads = 2;
        dollop::Engine engine(model, options);
        CHECK(engine.info().vocab > 1000 && engine.info_json().front() == '{');
        conversations(engine, cache);
        timelines(engine, cache);
        CHECK(engine.stats().streaming == 0 && engine.stats_json().front() == '{');
        const auto plan = engine.plan();
        CHECK(plan.info().level_count == plan.levels().size() && plan.json().front() == '{');
        CHECK(status_of([] { dollop::Engine("no-such-file"); }) == DOLLOP_IO);
        std::FILE *file = std::fopen(model.c_str(), "rb");
        CHECK(file != nullptr);
        dollop::Engine second(fileno(file), 0, 0, options);
        CHECK(dollop::Plan(fileno(file), 0, 0, options).info().total_bytes == plan.info().total_bytes);
        std::fclose(file);
        CHECK(second.info().vocab == engine.info().vocab && second.trim(DOLLOP_TRIM_NORMAL) == 0);
        CHECK(status_of([&] { second.set_memory(1); }) == DOLLOP_BUDGET);
        options.memory_bytes = 1;
        CHECK(status_of([&] { dollop::Plan(model, options); }) == DOLLOP_BUDGET);
        options.memory_bytes = plan.info().total_bytes;
        CHECK(dollop::Plan(model, options).info().budget_bytes == plan.info().total_bytes);

        options.memory_bytes = 0;
        logging(model, options);

        options = dollop::engine_options();
        options.cache_folder = cache.c_str();
        int caught = 0;
        try {
            dollop::Engine(talker, options, [](auto, auto, auto) -> bool { throw Thrown{8}; });
        } catch (const Thrown &t) {
            caught = t.value;
        }
        CHECK(caught == 8);
        CHECK(status_of([&] { dollop::Engine(talker, options, [](auto, auto, auto) { return false; }); }) ==
              DOLLOP_CANCELLED);
        int steps = 0;
        dollop::Engine foreign(talker, options, [&](auto stage, auto done, auto total) {
            CHECK(!stage.empty() && done <= total);
            return ++steps > 0;
        });
        CHECK(steps > 0 && dollop::Chat(foreign).send("hello").text == "h\xc3\xa9 \xf0\x9f\x99\x82");
        for (const auto &device : dollop::devices()) CHECK(device.name[0] != 0);
    }
    CHECK(dollop_open_handles() == 0);
    std::printf("%d checks\n", checks.load());
}
