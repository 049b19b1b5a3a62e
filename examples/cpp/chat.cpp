// Chats with a model, line by line: ./chat [MODEL]
#include <dollop.hpp>
#include <iostream>

int main(int argc, char **argv) try {
    dollop::Engine engine(argc > 1 ? argv[1] : "models/smollm2-moe.gguf");
    dollop::Chat chat(engine);
    dollop::GenerateOptions options;
    options.on_event = [](const dollop::Event &event) {
        std::cout << event.text << std::flush;
        return true; // false stops the answer.
    };
    for (std::string line; std::cout << "> " && std::getline(std::cin, line);) {
        const auto outcome = chat.send(line, options);
        std::cout << "\n[" << outcome.generated_tokens / outcome.decode_seconds << " tok/s]\n";
    }
} catch (const dollop::error &e) {
    std::cerr << dollop_status_name(e.status()) << ": " << e.what() << "\n";
    return 1;
}
