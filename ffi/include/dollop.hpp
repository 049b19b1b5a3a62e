// dollop.hpp: the C++17 interface of Dollop, one header over dollop.h.
//
// Objects own their handles: they can be moved but not copied, and close themselves. Failures throw dollop::error
// with the status of dollop.h. Callbacks are std::function. An exception of a callback stops the call, bypasses the
// library, and is thrown again to the caller; one of the log function is dropped. Threads are as in dollop.h: any
// number at a time for engines and plans, one call at a time for a session or chat, except cancel().
#ifndef DOLLOP_HPP
#define DOLLOP_HPP

#include "dollop.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dollop {

// A failed call. what() is the reason.
class error : public std::runtime_error {
public:
    error(dollop_status status, const std::string &text) : std::runtime_error(text), status_(status) {}
    dollop_status status() const noexcept { return status_; }

private:
    dollop_status status_;
};

namespace detail {

inline void check(dollop_status status) {
    if (status != DOLLOP_OK) throw error(status, dollop_last_error());
}

// A struct with its defaults.
template <typename T, dollop_status (*init)(T *, std::size_t)> T filled() {
    T value;
    check(init(&value, sizeof value));
    return value;
}

// Copies a text of the library and frees it.
inline std::string taken(char *text) {
    std::unique_ptr<char, void (*)(char *)> owner(text, dollop_text_free);
    return text ? std::string(text) : std::string();
}

template <typename T, dollop_status (*free)(T *)> struct closer {
    void operator()(T *handle) const noexcept { free(handle); }
};
template <typename T, dollop_status (*free)(T *)> using owner = std::unique_ptr<T, closer<T, free>>;

// Pointers to all texts of a list, followed by a null pointer. Valid as long as the list.
inline std::vector<const char *> pointers(const std::vector<std::string> &texts) {
    std::vector<const char *> list;
    list.reserve(texts.size() + 1);
    for (const auto &text : texts) list.push_back(text.c_str());
    list.push_back(nullptr);
    return list;
}

} // namespace detail

using EngineOptions = dollop_engine_options;
using Sampling = dollop_sampling;
using SessionOptions = dollop_session_options;
using Stats = dollop_stats;
using ModelInfo = dollop_model_info;
using PlanInfo = dollop_plan_info;
using PlanLevel = dollop_plan_level;
using SessionInfo = dollop_session_info;
using Device = dollop_device;

inline EngineOptions engine_options() {
    return detail::filled<EngineOptions, dollop_engine_options_init>();
}
inline Sampling sampling() { return detail::filled<Sampling, dollop_sampling_init>(); }
inline SessionOptions session_options() {
    return detail::filled<SessionOptions, dollop_session_options_init>();
}

// The library's version, such as "0.1.0".
inline std::string version() { return dollop_version(); }

// The GPUs of this machine.
inline std::vector<Device> devices() {
    std::size_t count = 0;
    detail::check(dollop_devices(nullptr, 0, &count));
    std::vector<Device> found(count);
    if (count > 0) detail::check(dollop_devices(found.data(), found.size(), &count));
    found.resize(count);
    return found;
}

// Receives one log message: its level (a DOLLOP_LOG_ constant), module, and one line to display; valid during the callback.
using OnLog = std::function<void(std::uint32_t level, std::string_view target, std::string_view message)>;

namespace detail {

// Whether this thread is inside the log function.
inline bool &in_log() {
    static thread_local bool inside = false;
    return inside;
}

extern "C" {
inline void dollop_hpp_on_log(std::uint32_t level, const char *target, const char *message, void *on_log) {
    in_log() = true;
    try {
        (*static_cast<const OnLog *>(on_log))(level, target, message);
    } catch (...) {
    }
    in_log() = false;
}
}

} // namespace detail

// Sets the function for log messages up to max_level (a DOLLOP_LOG_ constant). It replaces the previous one;
// nullptr removes it. It runs on the logging thread, on several at a time. When this returns, the previous function
// is not running and is destroyed. Any thread, but DOLLOP_BUSY from the function itself.
inline void set_log(OnLog on_log, std::uint32_t max_level = DOLLOP_LOG_INFO) {
    if (detail::in_log()) throw error(DOLLOP_BUSY, "the log cannot be changed from its own function");
    static std::mutex changing;
    // A bare pointer, so that nothing destroys it when the process ends while other threads may still log.
    static OnLog *current = nullptr;
    auto next = on_log ? std::make_unique<OnLog>(std::move(on_log)) : nullptr;
    std::unique_ptr<OnLog> before; // Destroyed after the lock is released.
    const std::lock_guard<std::mutex> lock(changing);
    detail::check(dollop_set_log(next ? detail::dollop_hpp_on_log : nullptr, next.get(), max_level));
    before.reset(std::exchange(current, next.release()));
}

// An event of a generation. text is valid during the callback.
struct Event {
    std::uint32_t kind; // DOLLOP_EVENT_
    std::uint32_t token;
    std::string_view text;
    std::uint64_t done;
    std::uint64_t total;
};

// Returns whether to continue.
using OnEvent = std::function<bool(const Event &)>;
using OnProgress = std::function<bool(std::string_view stage, std::uint64_t done, std::uint64_t total)>;

struct GenerateOptions {
    std::uint32_t max_tokens = 512;
    bool ignore_eos = false;
    const Sampling *sampling = nullptr; // By default the model's own.
    std::vector<std::string> stop;
    double target_tps = 0;
    OnEvent on_event;
    // The constraint on the answer; at most one of these may be non-empty.
    std::string json_schema;
    std::string regex;
    std::string grammar;
};

struct Outcome {
    std::string text;
    std::uint32_t stop = DOLLOP_STOP_OTHER; // DOLLOP_STOP_
    std::uint32_t prompt_tokens = 0;
    std::uint32_t reused_tokens = 0;
    std::uint32_t generated_tokens = 0;
    double prefill_seconds = 0;
    double decode_seconds = 0;
};

struct Message {
    std::string role;
    std::string content;
};

namespace detail {

// A std::function behind a C callback, and the exception that it threw.
template <typename F> struct Guard {
    const F &function;
    std::exception_ptr thrown;

    template <typename... Args> int call(Args &&...args) noexcept {
        try {
            return function(std::forward<Args>(args)...) ? 0 : 1;
        } catch (...) {
            thrown = std::current_exception();
            return 1;
        }
    }
    void finish(dollop_status status) {
        if (thrown) std::rethrow_exception(thrown);
        check(status);
    }
};

extern "C" {
inline std::int32_t dollop_hpp_on_event(const dollop_event *e, void *guard) {
    return static_cast<Guard<OnEvent> *>(guard)->call(
        Event{e->kind, e->token, std::string_view(e->text, e->text_len), e->done, e->total});
}
inline std::int32_t dollop_hpp_on_progress(const dollop_progress *p, void *guard) {
    return static_cast<Guard<OnProgress> *>(guard)->call(std::string_view(p->stage), p->done, p->total);
}
}

// Runs a C call that generates: call(options, text, outcome).
template <typename Call> Outcome generate(const GenerateOptions &options, Call &&call) {
    auto c = filled<dollop_generate_options, dollop_generate_options_init>();
    const auto stop = pointers(options.stop);
    Guard<OnEvent> guard{options.on_event, nullptr};
    c.max_tokens = options.max_tokens;
    c.ignore_eos = options.ignore_eos;
    c.sampling = options.sampling;
    c.stop = stop.data();
    c.stop_count = options.stop.size();
    c.target_tps = options.target_tps;
    const auto set = [](const std::string &text) { return text.empty() ? nullptr : text.c_str(); };
    c.json_schema = set(options.json_schema);
    c.regex = set(options.regex);
    c.grammar = set(options.grammar);
    if (options.on_event) {
        c.on_event = dollop_hpp_on_event;
        c.user_data = &guard;
    }
    auto o = filled<dollop_outcome, dollop_outcome_init>();
    char *text = nullptr;
    const dollop_status status = call(&c, &text, &o);
    std::string answer = taken(text);
    guard.finish(status);
    return {std::move(answer), o.stop, o.prompt_tokens, o.reused_tokens, o.generated_tokens,
            o.prefill_seconds, o.decode_seconds};
}

// Runs a call that takes engine options, with a callback for its progress.
template <typename Call> void open(const EngineOptions &options, const OnProgress &on_progress, Call &&call) {
    EngineOptions c = options;
    Guard<OnProgress> guard{on_progress, nullptr};
    if (on_progress) {
        c.on_progress = dollop_hpp_on_progress;
        c.progress_user_data = &guard;
    }
    guard.finish(call(&c));
}

inline std::vector<dollop_message> messages(const std::vector<Message> &list) {
    std::vector<dollop_message> c;
    c.reserve(list.size());
    for (const auto &m : list) c.push_back({m.role.c_str(), m.content.c_str()});
    return c;
}

} // namespace detail

// How a memory budget is spent.
class Plan {
public:
    // Plans the memory for opening a model. Loads nothing.
    explicit Plan(const std::string &path, const EngineOptions &options = engine_options(),
                  const OnProgress &on_progress = {}) {
        dollop_plan *plan = nullptr;
        detail::open(options, on_progress,
                     [&](const EngineOptions *o) { return dollop_plan_new(path.c_str(), o, &plan); });
        handle_.reset(plan);
    }
    // Plans for a Dollop file in an open file: length bytes from offset; 0 means up to the end.
    explicit Plan(int descriptor, std::uint64_t offset = 0, std::uint64_t length = 0,
                  const EngineOptions &options = engine_options()) {
        dollop_plan *plan = nullptr;
        detail::check(dollop_plan_new_file(descriptor, offset, length, &options, &plan));
        handle_.reset(plan);
    }
    explicit Plan(dollop_plan *owned) : handle_(owned) {}

    PlanInfo info() const {
        auto info = detail::filled<PlanInfo, dollop_plan_info_init>();
        detail::check(dollop_plan_get(get(), &info));
        return info;
    }
    std::vector<PlanLevel> levels() const {
        std::vector<PlanLevel> all(info().level_count);
        for (std::size_t i = 0; i < all.size(); i++) {
            all[i] = detail::filled<PlanLevel, dollop_plan_level_init>();
            detail::check(dollop_plan_level_at(get(), i, &all[i]));
        }
        return all;
    }
    std::string json() const {
        char *text = nullptr;
        detail::check(dollop_plan_json(get(), &text));
        return detail::taken(text);
    }
    dollop_plan *get() const noexcept { return handle_.get(); }

private:
    detail::owner<dollop_plan, dollop_plan_free> handle_;
};

// A loaded model.
class Engine {
public:
    explicit Engine(const std::string &path, const EngineOptions &options = engine_options(),
                    const OnProgress &on_progress = {}) {
        dollop_engine *engine = nullptr;
        detail::open(options, on_progress,
                     [&](const EngineOptions *o) { return dollop_engine_open(path.c_str(), o, &engine); });
        handle_.reset(engine);
    }
    // Opens a Dollop file in an open file, whose descriptor is duplicated: length bytes from offset; 0 means up to the end.
    explicit Engine(int descriptor, std::uint64_t offset = 0, std::uint64_t length = 0,
                    const EngineOptions &options = engine_options()) {
        dollop_engine *engine = nullptr;
        detail::check(dollop_engine_open_file(descriptor, offset, length, &options, &engine));
        handle_.reset(engine);
    }

    // Set another budget, and a DOLLOP_TRIM_ level. Both return the number of bytes freed to the system. Any thread.
    std::uint64_t set_memory(std::uint64_t bytes) const {
        std::uint64_t given = 0;
        detail::check(dollop_engine_set_memory(get(), bytes, &given));
        return given;
    }
    std::uint64_t trim(std::uint32_t level) const {
        std::uint64_t given = 0;
        detail::check(dollop_engine_trim(get(), level, &given));
        return given;
    }
    ModelInfo info() const {
        auto info = detail::filled<ModelInfo, dollop_model_info_init>();
        detail::check(dollop_engine_info(get(), &info));
        return info;
    }
    Stats stats() const {
        auto stats = detail::filled<Stats, dollop_stats_init>();
        detail::check(dollop_engine_stats(get(), &stats));
        return stats;
    }
    Sampling sampling() const {
        auto sampling = dollop::sampling();
        detail::check(dollop_engine_sampling(get(), &sampling));
        return sampling;
    }
    Plan plan() const {
        dollop_plan *plan = nullptr;
        detail::check(dollop_engine_plan(get(), &plan));
        return Plan(plan);
    }
    std::string info_json() const { return json(dollop_engine_info_json); }
    std::string stats_json() const { return json(dollop_engine_stats_json); }

    std::vector<std::uint32_t> tokenize(const std::string &text, bool add_special = true) const {
        std::size_t count = 0;
        detail::check(dollop_engine_tokenize(get(), text.c_str(), add_special, nullptr, 0, &count));
        std::vector<std::uint32_t> ids(count);
        if (count > 0)
            detail::check(dollop_engine_tokenize(get(), text.c_str(), add_special, ids.data(), count, &count));
        return ids;
    }
    std::string detokenize(const std::vector<std::uint32_t> &ids, bool skip_special = false) const {
        char *text = nullptr;
        detail::check(dollop_engine_detokenize(get(), ids.data(), ids.size(), skip_special, &text));
        return detail::taken(text);
    }
    // Renders messages with the model's chat template.
    std::string render(const std::vector<Message> &messages, bool add_generation_prompt = true) const {
        const auto list = detail::messages(messages);
        char *text = nullptr;
        detail::check(dollop_engine_render(get(), list.data(), list.size(), add_generation_prompt, &text));
        return detail::taken(text);
    }
    dollop_engine *get() const noexcept { return handle_.get(); }

private:
    std::string json(dollop_status (*of)(const dollop_engine *, char **)) const {
        char *text = nullptr;
        detail::check(of(get(), &text));
        return detail::taken(text);
    }
    detail::owner<dollop_engine, dollop_engine_free> handle_;
};

// A session: a sequence of tokens with its KV cache.
class Session {
public:
    explicit Session(const Engine &engine, const SessionOptions &options = session_options()) {
        dollop_session *session = nullptr;
        detail::check(dollop_session_new(engine.get(), &options, &session));
        handle_.reset(session);
    }

    Outcome generate(const std::vector<std::uint32_t> &ids, const GenerateOptions &options = {}) {
        return detail::generate(options, [&](auto *o, char **text, auto *outcome) {
            return dollop_session_generate(get(), ids.data(), ids.size(), o, text, outcome);
        });
    }
    Outcome complete(const std::string &prompt, const GenerateOptions &options = {}) {
        return detail::generate(options, [&](auto *o, char **text, auto *outcome) {
            return dollop_session_complete(get(), prompt.c_str(), o, text, outcome);
        });
    }
    // Appends ids and returns the logits of the next token. vocab is ModelInfo::vocab.
    std::vector<float> logits(const std::vector<std::uint32_t> &ids, std::size_t vocab) {
        std::vector<float> logits(vocab);
        detail::check(dollop_session_logits(get(), ids.data(), ids.size(), logits.data(), logits.size()));
        return logits;
    }
    std::vector<std::uint32_t> tokens() const {
        std::size_t count = 0;
        detail::check(dollop_session_tokens(get(), nullptr, 0, &count));
        std::vector<std::uint32_t> ids(count);
        if (count > 0) detail::check(dollop_session_tokens(get(), ids.data(), count, &count));
        return ids;
    }
    SessionInfo info() const {
        auto info = detail::filled<SessionInfo, dollop_session_info_init>();
        detail::check(dollop_session_get(get(), &info));
        return info;
    }
    void rewind(std::size_t count) { detail::check(dollop_session_rewind(get(), count)); }
    // Returns the size of the file in bytes.
    std::uint64_t save(const std::string &path) const {
        std::uint64_t bytes = 0;
        detail::check(dollop_session_save(get(), path.c_str(), &bytes));
        return bytes;
    }
    static Session load(const Engine &engine, const std::string &path,
                        const SessionOptions &options = session_options()) {
        dollop_session *session = nullptr;
        detail::check(dollop_session_load(engine.get(), path.c_str(), &options, &session));
        return Session(session);
    }
    Session fork() const {
        dollop_session *fork = nullptr;
        detail::check(dollop_session_fork(get(), &fork));
        return Session(fork);
    }
    // Any thread.
    void cancel() const { detail::check(dollop_session_cancel(get())); }
    dollop_session *get() const noexcept { return handle_.get(); }

private:
    explicit Session(dollop_session *owned) : handle_(owned) {}
    detail::owner<dollop_session, dollop_session_free> handle_;
};

// A conversation.
class Chat {
public:
    struct Options {
        const char *system = nullptr; // By default the template's own.
        std::uint32_t context = 0;
        std::uint32_t chunk = 0;
        std::uint32_t overflow = DOLLOP_OVERFLOW_ERROR;
    };

    explicit Chat(const Engine &engine) : Chat(engine, Options()) {}
    Chat(const Engine &engine, const Options &options) {
        auto c = detail::filled<dollop_chat_options, dollop_chat_options_init>();
        c.system = options.system;
        c.context = options.context;
        c.chunk = options.chunk;
        c.overflow = options.overflow;
        dollop_chat *chat = nullptr;
        detail::check(dollop_chat_new(engine.get(), &c, &chat));
        handle_.reset(chat);
    }

    Outcome send(const std::string &message, const GenerateOptions &options = {}) {
        return detail::generate(options, [&](auto *o, char **text, auto *outcome) {
            return dollop_chat_send(get(), message.c_str(), o, text, outcome);
        });
    }
    Outcome regenerate(const GenerateOptions &options = {}) {
        return detail::generate(options, [&](auto *o, char **text, auto *outcome) {
            return dollop_chat_regenerate(get(), o, text, outcome);
        });
    }
    void reset() { detail::check(dollop_chat_reset(get())); }
    // Returns the size of the file in bytes.
    std::uint64_t save(const std::string &path) const {
        std::uint64_t bytes = 0;
        detail::check(dollop_chat_save(get(), path.c_str(), &bytes));
        return bytes;
    }
    static Chat load(const Engine &engine, const std::string &path,
                     const SessionOptions &options = session_options()) {
        dollop_chat *chat = nullptr;
        detail::check(dollop_chat_load(engine.get(), path.c_str(), &options, &chat));
        return Chat(chat);
    }
    void set_messages(const std::vector<Message> &messages) {
        const auto list = detail::messages(messages);
        detail::check(dollop_chat_set_messages(get(), list.data(), list.size()));
    }
    std::string messages_json() const {
        char *text = nullptr;
        detail::check(dollop_chat_messages_json(get(), &text));
        return detail::taken(text);
    }
    // A JSON object with the template's variables besides the messages.
    void set_variables(const std::string &json) {
        detail::check(dollop_chat_set_variables(get(), json.c_str()));
    }
    void set_time(std::uint64_t seconds) { detail::check(dollop_chat_set_time(get(), seconds)); }
    SessionInfo info() const {
        auto info = detail::filled<SessionInfo, dollop_session_info_init>();
        detail::check(dollop_chat_get(get(), &info));
        return info;
    }
    // Any thread.
    void cancel() const { detail::check(dollop_chat_cancel(get())); }
    dollop_chat *get() const noexcept { return handle_.get(); }

private:
    explicit Chat(dollop_chat *owned) : handle_(owned) {}
    detail::owner<dollop_chat, dollop_chat_free> handle_;
};

} // namespace dollop

#endif // DOLLOP_HPP
