/* Shared by the C tests: checks that print where they failed. */
#ifndef EXPECT_H
#define EXPECT_H

#include <dollop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The number of checks made: a test without checks is a defect. */
static int checks;

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        checks++;                                                                                            \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition,                  \
                    dollop_last_error());                                                                    \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

/* Checks a call's status, and for a failure also that the error text contains `part`. */
#define EXPECT(want, part, call)                                                                             \
    do {                                                                                                     \
        const dollop_status got = (call);                                                                    \
        checks++;                                                                                            \
        if (got != (want) || ((want) != DOLLOP_OK && !strstr(dollop_last_error(), part))) {                  \
            fprintf(stderr, "%s:%d: %s returned %s (%s), expected %s with \"%s\"\n", __FILE__, __LINE__, \
                    #call, dollop_status_name(got), dollop_last_error(), dollop_status_name(want), part);    \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define OK(call) EXPECT(DOLLOP_OK, "", call)

/* Declares a struct with its defaults. */
#define NEW(type, name)                                                                                      \
    type name;                                                                                               \
    OK(type##_init(&name, sizeof name))

/* The arguments of every test program (../programs.rs). */
struct fixtures {
    const char *model;   /* The default model. */
    const char *talker;  /* A Hugging Face folder of a model that says "h\xc3\xa9 \xf0\x9f\x99\x82". */
    const char *broken;  /* The same, but its values overflow. */
    const char *garbage; /* A file that ends after the beginning of a GGUF header. */
    const char *cache;   /* An empty folder. */
};

static inline struct fixtures fixtures(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: %s MODEL TALKER BROKEN GARBAGE CACHE\n", argv[0]);
        exit(2);
    }
    struct fixtures f = {argv[1], argv[2], argv[3], argv[4], argv[5]};
    return f;
}

static inline int finished(void) {
    CHECK(dollop_open_handles() == 0);
    printf("%d checks\n", checks);
    return 0;
}

#endif
