/* Asks a model a question and streams its answer: ./chat [MODEL [QUESTION]] */
#include <dollop.h>
#include <stdio.h>

static int show(const dollop_event *event, void *user_data) {
    (void)user_data;
    fputs(event->text, stdout); /* Whole UTF-8 characters; "" during prefill. */
    fflush(stdout);
    return 0; /* Any other value stops the answer. */
}

static int failed(const char *what) {
    fprintf(stderr, "%s: %s\n", what, dollop_last_error());
    return 1;
}

int main(int argc, char **argv) {
    const char *model = argc > 1 ? argv[1] : "models/smollm2-moe.gguf";
    const char *question = argc > 2 ? argv[2] : "What is the capital of France?";
    dollop_engine *engine = NULL;
    if (dollop_engine_open(model, NULL, &engine) != DOLLOP_OK) return failed("open");

    dollop_chat *chat = NULL;
    dollop_generate_options options;
    dollop_sampling greedy;
    dollop_generate_options_init(&options, sizeof options);
    dollop_sampling_init(&greedy, sizeof greedy);
    dollop_status status = dollop_chat_new(engine, NULL, &chat);
    if (status == DOLLOP_OK) status = dollop_engine_sampling(engine, &greedy); /* The model's own sampling, */
    if (status == DOLLOP_OK) {
        greedy.temperature = 0; /* but always the likeliest token. */
        options.sampling = &greedy;
        options.on_event = show;
        status = dollop_chat_send(chat, question, &options, NULL, NULL);
    }
    putchar('\n');
    dollop_chat_free(chat);
    dollop_engine_free(engine);
    return status == DOLLOP_OK ? 0 : failed(dollop_status_name(status));
}
