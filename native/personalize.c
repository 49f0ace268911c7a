/* Vectors in llama.cpp, without Python: what an app does with them, a frame after the other.
 *
 *     personalize [--fold] [--key HEX] [--user NAME] BASE.gguf BASIS.gguf PROMPT FRAME...
 *
 * Generates an answer by the base, and by each vector. One adapter serves all vectors, and a swap is a pointer; with
 * --fold each becomes an adapter of its own. FRAME is a text, as `tinylora-edge pack --text` and a QR code have it. With a
 * key, an HMAC's, frames without its tag are refused. PROMPT goes to the model as it is: write its chat template out. A
 * frame that is refused leaves the model with the vector before it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <llama.h>

#include "tinylora.h"

enum { CONTEXT = 512, TOKENS = 24, THREADS = 2, LONGEST_FRAME = 1 << 21 };

static void fail(const char *what) {
    fprintf(stderr, "personalize: %s\n", what);
    exit(1);
}

static void errors_only(enum ggml_log_level level, const char *line, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(line, stderr);
}

/* Greedy, from an empty cache: what it held was computed by the model as it was before. */
static void generate(struct llama_context *context, const struct llama_model *model, const char *prompt,
                     const tinylora_rows *rows) {
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    struct llama_sampler *greedy = llama_sampler_init_greedy();
    llama_token tokens[CONTEXT - TOKENS];
    char piece[256];
    int count = llama_tokenize(vocab, prompt, (int)strlen(prompt), tokens, CONTEXT - TOKENS, true, true);
    if (count < 1) fail("the prompt is empty, or too long");
    llama_memory_clear(llama_get_memory(context), true);
    for (int made = 0; made < TOKENS; made++) {
        if (llama_decode(context, llama_batch_get_one(tokens, count))) fail("llama.cpp could not compute");
        if (*rows->why.text) fail(rows->why.text);
        tokens[0] = llama_sampler_sample(greedy, context, -1);
        count = 1;
        if (llama_vocab_is_eog(vocab, tokens[0])) break;
        fwrite(piece, 1, (size_t)llama_token_to_piece(vocab, tokens[0], piece, sizeof piece, 0, false),
               stdout);
    }
    putchar('\n');
    llama_sampler_free(greedy);
}

/* A text to a vector that the policy accepts. */
static tinylora_status receive(tinylora_vector *vector, const tinylora_bases *bases, const char *text,
                               tinylora_policy *policy, tinylora_error *why) {
    static uint8_t frame[LONGEST_FRAME];
    size_t size;
    tinylora_status status = tinylora_text(text, frame, sizeof frame, &size, why);
    return status ? status : tinylora_read(vector, bases, frame, size, policy, why);
}

int main(int argc, char **argv) {
    static uint8_t secret[256];
    tinylora_key key = {TINYLORA_HMAC, secret, 0, {0, {0}}};
    tinylora_policy policy = {0};
    tinylora_error why;
    tinylora_bases *bases;
    tinylora_vector vector = {0}, next = {0};
    const tinylora_vector *active = NULL; /* the base */
    struct llama_adapter_lora *adapter, *old;
    float whole = 1;
    int at = 1, refused = 0, fold = 0;
    for (; at + 1 < argc && !strncmp(argv[at], "--", 2); at++) {
        if (!strcmp(argv[at], "--fold")) {
            fold = 1;
            continue;
        }
        if (!strcmp(argv[at++], "--user")) policy.user = argv[at];
        if (strcmp(argv[at - 1], "--key")) continue;
        if (tinylora_text(argv[at], secret, sizeof secret, &key.size, &why)) fail(why.text);
        policy.keys = &key;
        policy.key_count = 1;
    }
    if (argc - at < 4)
        fail("usage: personalize [--fold] [--key HEX] [--user NAME] BASE.gguf BASIS.gguf PROMPT FRAME...");
    const char *base_path = argv[at], *prompt = argv[at + 2];

    /* First all that may be refused: factors, base, and frame. */
    if (tinylora_open(&bases, argv[at + 1], base_path, &why)) fail(why.text);
    if (receive(&vector, bases, argv[at + 3], &policy, &why)) fail(why.text);

    /* Then the model. An adapter comes before the context: llama.cpp sizes its graph for those that there are. */
    llama_log_set(errors_only, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(base_path, llama_model_default_params());
    if (!model) fail("llama.cpp could not load the base");
    if (tinylora_adapter(&adapter, model, bases, fold ? &vector.basis : NULL, fold ? vector.r : NULL, &why))
        fail(why.text);
    struct llama_context_params parameters = llama_context_default_params();
    tinylora_rows rows = {bases, &active, NULL, {""}};
    parameters.n_ctx = parameters.n_batch = CONTEXT;
    parameters.n_threads = parameters.n_threads_batch = THREADS;
    if (!fold) {
        parameters.cb_eval = tinylora_eval;
        parameters.cb_eval_user_data = &rows;
    }
    struct llama_context *context = llama_init_from_model(model, parameters);
    if (!context) fail("llama.cpp could not make a context");
    if (!fold && llama_set_adapters_lora(context, &adapter, 1, &whole)) fail("llama.cpp refused the adapter");
    printf("base: ");
    generate(context, model, prompt, &rows);

    for (at += 3;;) {
        active = &vector;
        if (fold && llama_set_adapters_lora(context, &adapter, 1, &whole))
            fail("llama.cpp refused the adapter");
        if (tinylora_accept(&policy, &vector, &why))
            fail(why.text); /* an app keeps its marks on disk, here */
        printf("sequence %u, %u numbers: ", (unsigned)vector.mark.sequence, (unsigned)vector.basis.n);
        generate(context, model, prompt, &rows);
        while (++at < argc && receive(&next, bases, argv[at], &policy, &why)) {
            fprintf(stderr, "personalize: %s\n", why.text);
            refused = 1;
        }
        tinylora_vector_free(&vector);
        if (at == argc) break;
        vector = next;
        if (!fold) continue;
        old = adapter;
        if (tinylora_adapter(&adapter, model, bases, &vector.basis, vector.r, &why)) fail(why.text);
        llama_set_adapters_lora(context, &adapter, 1, &whole);
        llama_adapter_lora_free(old);
    }
    llama_free(context);
    llama_model_free(model); /* and its adapter with it */
    llama_backend_free();
    tinylora_close(bases);
    return refused;
}
