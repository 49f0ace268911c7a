/* What native.py runs: BASE BASIS ROUNDS. Contestants take turns; it prints the name and milliseconds of each turn. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <llama.h>

#include "tinylora.h"

enum { TOKENS = 8, CONTEXT = 256, BASE = 0, FOLDED, SMALL, WHOLE, CONTESTANTS };

static const char *const names[] = {"base", "folded", "rows, 8 x 8", "rows, all vectors"};

static double now(void) { /* processor time, which other work on the machine does not change */
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void quiet(enum ggml_log_level level, const char *line, void *data) {
    (void)level, (void)line, (void)data;
}

int main(int argc, char **argv) {
    struct llama_adapter_lora *adapters[CONTESTANTS] = {NULL}, *folded;
    struct llama_context *contexts[CONTESTANTS];
    tinylora_rows rows[CONTESTANTS];
    tinylora_error why = {""};
    tinylora_bases *bases;
    tinylora_vector vectors[2] = {0}; /* 8 x 8, and P x Q */
    const tinylora_vector *of[CONTESTANTS] = {NULL, NULL, &vectors[0], &vectors[1]};
    struct llama_model *model;
    float whole = 1;
    if (argc != 4 || tinylora_open(&bases, argv[2], argv[1], &why)) return puts(why.text), 1;
    llama_log_set(quiet, NULL);
    if (!(model = llama_model_load_from_file(argv[1], llama_model_default_params()))) return 1;
    for (int i = 0; i < 2; i++) {
        tinylora_basis *b = &vectors[i].basis;
        b->rank = bases->rank;
        b->outputs = i ? bases->outputs : b->rank;
        vectors[i].r = malloc(sizeof(float) * bases->modules * b->outputs * b->rank);
        for (uint32_t k = 0; k < bases->modules * b->outputs * b->rank; k++)
            vectors[i].r[k] = (float)(k % 7) * 1e-4f;
        if (tinylora_adapter(adapters + SMALL + i, model, bases, b, NULL, &why)) return puts(why.text), 1;
    }
    if (tinylora_adapter(&folded, model, bases, &vectors[0].basis, vectors[0].r, &why)) return puts(why.text), 1;
    adapters[FOLDED] = folded;
    for (int i = 0; i < CONTESTANTS; i++) {
        struct llama_context_params parameters = llama_context_default_params();
        parameters.n_ctx = CONTEXT;
        parameters.n_threads = parameters.n_threads_batch = 1;
        rows[i] = (tinylora_rows){bases, of + i, NULL, {""}};
        if (i >= SMALL) {
            parameters.cb_eval = tinylora_eval;
            parameters.cb_eval_user_data = rows + i;
        }
        if (!(contexts[i] = llama_init_from_model(model, parameters))) return 1;
        if (adapters[i]) llama_set_adapters_lora(contexts[i], adapters + i, 1, &whole);
    }
    for (int round = -1; round < atoi(argv[3]); round++) { /* the first one warms up */
        for (int i = 0; i < CONTESTANTS; i++) {
            int turn = (i + round + 1) % CONTESTANTS;
            double begin = now();
            llama_memory_clear(llama_get_memory(contexts[turn]), true);
            for (llama_token token = 100; token < 100 + TOKENS; token++)
                if (llama_decode(contexts[turn], llama_batch_get_one(&token, 1)) || *rows[turn].why.text) return 1;
            if (round >= 0) printf("%s\t%.4f\n", names[turn], (now() - begin) / TOKENS);
        }
        for (int i = 0; i < 2; i++) {
            double begin = now();
            if (tinylora_adapter(&folded, model, bases, &vectors[i].basis, vectors[i].r, &why)) return 1;
            if (round >= 0) printf("fold, %s\t%.4f\n", i ? "all vectors" : "8 x 8", now() - begin);
            llama_adapter_lora_free(folded);
        }
    }
    return 0;
}
