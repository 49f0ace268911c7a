/* A vector in llama.cpp, with no Python: reads factors and a frame, checks both, and generates before and after.
 *
 *     personalize BASE.gguf BASIS.gguf FRAME PROMPT [KEY [STREAM]]
 *
 * FRAME is a text, as `tinylora-edge vector text` and a QR code have it. KEY is an HMAC key in hexadecimal: with one,
 * frames without its tag are refused. STREAM is whose vectors this device takes. PROMPT goes to the model as it is.
 *
 * A vector of any size becomes one adapter, (A, B R) on the leading k directions of the factors, in milliseconds.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include <gguf.h>
#include <llama.h>

#include "reader/basis.h"
#include "reader/vector.h"

enum { CONTEXT = 512, TOKENS = 24, THREADS = 2 };
static const double MAX_NORM = 1000; /* of R */

static void fail(const char *what) {
    fprintf(stderr, "personalize: %s\n", what);
    exit(1);
}

static void *room(size_t size) {
    void *made = malloc(size ? size : 1);
    if (!made) fail("no memory");
    return made;
}

static const uint8_t *map(const char *path, uint64_t *size) { /* it stays mapped: factors point into it */
    struct stat about;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &about) || !about.st_size) fail(path);
    void *data = mmap(NULL, *size = (uint64_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (data == MAP_FAILED) fail(path);
    return data;
}

static float item(const tensor *t, uint64_t i) {
    return t->type ? ggml_fp16_to_fp32(t->data[2 * i] | t->data[2 * i + 1] << 8) : read_f32(t->data + 4 * i);
}

/* One tensor of an adapter, f32: the first k rows of A, or with an R (k x k), B's first k columns times R. */
static void put(struct gguf_context *file, struct ggml_context *memory, const module *m, const char *suffix,
                const tensor *t, const float *r, uint64_t k) {
    uint64_t stacked = t->dimensions == 3 ? t->shape[0] : 1;
    uint64_t rows = t->shape[t->dimensions - 2], columns = t->shape[t->dimensions - 1];
    uint64_t high = r ? rows : k, wide = r ? k : columns;
    struct ggml_tensor *made = t->dimensions == 3 ? ggml_new_tensor_3d(memory, GGML_TYPE_F32, wide, high, stacked)
                                                  : ggml_new_tensor_2d(memory, GGML_TYPE_F32, wide, high);
    float *out = made->data;
    ggml_format_name(made, "%.*s%s", (int)m->name.size, (const char *)m->name.at, suffix);
    for (uint64_t i = 0; i < stacked * high * wide; i++) {
        uint64_t row = i / wide, column = i % wide, start = (row / high * rows + row % high) * columns;
        out[i] = r ? 0 : item(t, start + column);
        for (uint64_t l = 0; r && l < k; l++) out[i] += item(t, start + l) * r[l * k + column];
    }
    gguf_add_tensor(file, made);
}

/* (A, B R), loaded into the model through a file that has no name. */
static struct llama_adapter_lora *adapter(struct llama_model *model, const factors *f, uint64_t k, const float *r) {
    struct gguf_context *file = gguf_init_empty();
    size_t bytes = 0;
    char *architecture = room(f->architecture.size + 1);
    for (uint32_t i = 0; i < f->count; i++) /* factors of 2 or 4 bytes become floats */
        bytes += 2 * (f->modules[i].a.size + f->modules[i].b.size + ggml_tensor_overhead() + GGML_MEM_ALIGN);
    struct ggml_context *memory = ggml_init((struct ggml_init_params){bytes, NULL, false});
    FILE *kept = tmpfile();
    if (!memory || !kept) fail("no memory, or no temporary file, for an adapter");
    memcpy(architecture, f->architecture.at, f->architecture.size);
    architecture[f->architecture.size] = 0;
    gguf_set_val_str(file, "general.architecture", architecture);
    gguf_set_val_str(file, "general.type", "adapter");
    gguf_set_val_str(file, "adapter.type", "lora");
    gguf_set_val_f32(file, "adapter.lora.alpha", 0); /* 0: a scale is used as it is */
    for (uint32_t i = 0; i < f->count; i++) {
        const module *m = f->modules + i;
        put(file, memory, m, ".lora_a", &m->a, NULL, k);
        put(file, memory, m, ".lora_b", &m->b, r + i * k * k, k);
    }
    int written = gguf_write_to_file_ptr(file, kept, false) && !fflush(kept);
    rewind(kept);
    struct llama_adapter_lora *loaded = written ? llama_adapter_lora_init_from_file_ptr(model, kept) : NULL;
    if (!loaded) fail("llama.cpp refused an adapter that was made of the factors");
    fclose(kept);
    ggml_free(memory);
    gguf_free(file);
    free(architecture);
    return loaded;
}

/* Greedy, from an empty cache: what it held was computed by the model as it was before. */
static void generate(struct llama_context *context, const struct llama_model *model, const char *prompt) {
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    struct llama_sampler *greedy = llama_sampler_init_greedy();
    llama_token tokens[CONTEXT - TOKENS];
    char piece[256];
    int count = llama_tokenize(vocab, prompt, (int)strlen(prompt), tokens, CONTEXT - TOKENS, true, true);
    if (count < 1) fail("a prompt that is empty or too long");
    llama_memory_clear(llama_get_memory(context), true);
    for (int made = 0; made < TOKENS; made++) {
        if (llama_decode(context, llama_batch_get_one(tokens, count))) fail("llama.cpp could not compute");
        tokens[0] = llama_sampler_sample(greedy, context, -1);
        count = 1;
        if (llama_vocab_is_eog(vocab, tokens[0])) break;
        fwrite(piece, 1, (size_t)llama_token_to_piece(vocab, tokens[0], piece, sizeof piece, 0, false), stdout);
    }
    putchar('\n');
    llama_sampler_free(greedy);
}

static void quiet(enum ggml_log_level level, const char *line, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(line, stderr);
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 7) fail("usage: personalize BASE.gguf BASIS.gguf FRAME PROMPT [KEY [STREAM]]");
    uint64_t size;
    uint8_t print[32], key[256], *frame = room(strlen(argv[3]) + 1);
    size_t frame_size, key_size = 0;
    factors f;
    basis b;
    gguf base;
    vector_head head;

    /* First all that may be refused: the factors, the base, and the frame. */
    const uint8_t *data = map(argv[2], &size);
    const char *error = factors_open(&f, data, size);
    data = map(argv[1], &size);
    if (!error) error = gguf_open(&base, data, size);
    if (!error) error = fingerprint(&f, &base, print);
    if (!error && !fingerprint_is_listed(&f, print)) error = "the factors were not exported for this base";
    if (!error && argc > 5 && strlen(argv[5]) > sizeof key) error = "a key that long";
    if (!error && argc > 5) error = text_decode(argv[5], strlen(argv[5]), key, &key_size);
    if (!error) error = text_decode(argv[3], strlen(argv[3]), frame, &frame_size);
    if (!error) error = basis_of(&f, frame, frame_size, &b);
    if (error) fail(error);
    trust trusted = {.hmac_key = key_size ? key : NULL, .hmac_key_size = key_size,
                     .require = key_size ? TAG_HMAC : TAG_CRC32, .stream = argc > 6 ? argv[6] : NULL};
    trusted.today = (int)((time(NULL) - 1767225600) / 86400); /* days since 2026-01-01 */
    float *values = room((size_t)b.n * sizeof *values), *r = room((size_t)f.count * b.rank * b.rank * sizeof *r);
    error = vector_check(frame, frame_size, (size_t)b.n, b.digest, &trusted, &head, values);
    if (!error) error = basis_r(&f, &b, values, MAX_NORM, r);
    if (error) fail(error); /* an app also compares head.sequence with the last one that it accepted of these factors */

    /* Then the model. Adapters come before the context: llama.cpp sizes its graph for those that there are. */
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model_params loading = llama_model_default_params();
    struct llama_model *model = llama_model_load_from_file(argv[1], loading);
    if (!model) fail("llama.cpp could not load the base");
    struct llama_adapter_lora *personal = adapter(model, &f, b.rank, r);
    float scale = 1;
    struct llama_context_params computing = llama_context_default_params();
    computing.n_ctx = computing.n_batch = CONTEXT;
    computing.n_threads = computing.n_threads_batch = THREADS;
    struct llama_context *context = llama_init_from_model(model, computing);
    if (!context) fail("llama.cpp could not make a context");

    printf("before: ");
    generate(context, model, argv[4]);
    if (llama_set_adapters_lora(context, &personal, 1, &scale)) fail("llama.cpp refused the adapter");
    printf("after:  ");
    generate(context, model, argv[4]);
    printf("vector: sequence %d, %zu values, %zu bytes\n", head.sequence, (size_t)b.n, frame_size);
    llama_free(context);
    llama_model_free(model); /* and its adapter with it */
    llama_backend_free();
    return 0;
}
