/* Rows of different vectors through native/tinylora.c and llama.cpp.
 *
 *     rows FORM BASE BASIS P Q FRAME...     the logits behind a prompt and one more token, a line a row
 *
 * FORM: together, device (the same, where no tensor is in the host's memory), split (the same, where llama.cpp evaluates
 * equally many tokens of each row at once), or folded (one after the other, without the callback). FRAME is a text, or `-`
 * for the base. P x Q is what the adapter has room for; 0 x 0: the factors'.
 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include <llama.h>

static int on_device;
static bool is_host(ggml_backend_buffer_t buffer) { return !on_device && ggml_backend_buffer_is_host(buffer); }
#define ggml_backend_buffer_is_host is_host
#include "tinylora.c"

enum { ROWS = 16, FRAME = 1 << 21 };

static tinylora_error why;

static int fail_with(const char *what) {
    fprintf(stderr, "rows: %s\n", what);
    exit(1);
}

static void quiet(enum ggml_log_level level, const char *line, void *data) {
    (void)level, (void)line, (void)data;
}

/* Evaluate the prompt of rows, of 3 or 4 tokens, or the token behind it. Of the last one are the logits. */
static void evaluate(struct llama_context *context, tinylora_rows *rows, int first, int end, int prompt) {
    struct llama_batch batch = llama_batch_init(8 * ROWS, 0, 1);
    for (int row = first; row < end; row++) {
        int length = 3 + row % 2, count = prompt ? length : 1;
        for (int i = 0; i < count; i++, batch.n_tokens++) {
            batch.pos[batch.n_tokens] = prompt ? i : length;
            batch.token[batch.n_tokens] = 65 + batch.pos[batch.n_tokens];
            batch.n_seq_id[batch.n_tokens] = 1;
            batch.seq_id[batch.n_tokens][0] = row;
            batch.logits[batch.n_tokens] = i == count - 1;
        }
    }
    rows->batch = &batch;
    if (llama_decode(context, batch)) fail_with("llama.cpp could not compute");
    if (*rows->why.text) fail_with(rows->why.text);
    llama_batch_free(batch);
}

static void answer(struct llama_context *context, tinylora_rows *rows, int first, int end) {
    int size = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
    evaluate(context, rows, first, end, 1);
    evaluate(context, rows, first, end, 0);
    for (int row = 0; row < end - first; row++) {
        const uint8_t *bytes = (const uint8_t *)llama_get_logits_ith(context, row);
        for (int i = 0; i < 4 * size; i++) printf("%02x", bytes[i]);
        putchar('\n');
    }
}

/* Each tensor A is found by its name, and by that of a copy; nothing else is. */
static void check_names(const tinylora_bases *bases) {
    static const char *const none[] = {"",          "blk.0.attn_q.weight",         "blk.0.attn_q.weight.lora_b",
                                       ".lora_a",   "blk.99999.attn_q.weight.lora_a", "output.weight.lora_a",
                                       "#.lora_a#", "blk.0.attn_q.weight#.lora_a"};
    struct ggml_tensor t = {0};
    for (uint32_t i = 0; i < bases->modules; i++)
        for (int copy = 0; copy < 2; copy++) {
            const module *m = bases->own->modules + i;
            snprintf(t.name, sizeof t.name, copy ? "CUDA0#%.*s.lora_a#0" : "%.*s.lora_a", NAME(m->name));
            if (module_of(bases, &t) != m) fail_with(t.name);
        }
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        snprintf(t.name, sizeof t.name, "%s", none[i]);
        if (module_of(bases, &t)) fail_with(t.name);
    }
    if (module_of(bases, NULL)) fail_with("no tensor");
}

int main(int argc, char **argv) {
    static uint8_t frame[FRAME];
    tinylora_policy policy = {0};
    tinylora_vector vectors[ROWS] = {0};
    const tinylora_vector *given[ROWS] = {0};
    struct llama_adapter_lora *adapter = NULL;
    tinylora_bases *bases;
    float whole = 1;
    int count = argc - 6, folded;
    if (argc < 2) return 0;
    if (count < 1 || count > ROWS) fail_with("usage: rows FORM BASE BASIS P Q FRAME...");
    folded = !strcmp(argv[1], "folded");
    on_device = !strcmp(argv[1], "device");
    if (tinylora_open(&bases, argv[3], argv[2], &why)) fail_with(why.text);
    check_names(bases);
    for (int i = 0; i < count; i++) {
        size_t size;
        if (!strcmp(argv[6 + i], "-")) continue;
        if (tinylora_text(argv[6 + i], frame, sizeof frame, &size, &why)) fail_with(why.text);
        if (tinylora_read(vectors + i, bases, frame, size, &policy, &why)) fail_with(why.text);
        given[i] = vectors + i;
    }
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[2], llama_model_default_params());
    if (!model) fail_with("no model");
    tinylora_basis most = {.outputs = (uint32_t)atoi(argv[4]), .rank = (uint32_t)atoi(argv[5])};
    if (tinylora_adapter(&adapter, model, bases, most.rank ? &most : NULL, NULL, &why)) fail_with(why.text);
    tinylora_rows rows = {bases, given, NULL, {""}};
    struct llama_context_params parameters = llama_context_default_params();
    parameters.n_seq_max = (uint32_t)count;
    parameters.n_ctx = 64 * (uint32_t)count;
    parameters.n_batch = parameters.n_ubatch = 8 * ROWS;
    parameters.kv_unified = strcmp(argv[1], "split") != 0;
    parameters.type_k = parameters.type_v = GGML_TYPE_F32;
    parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED; /* which rounds them to float16 */
    parameters.n_threads = parameters.n_threads_batch = 1;
    if (!folded) {
        parameters.cb_eval = tinylora_eval;
        parameters.cb_eval_user_data = &rows;
    }
    struct llama_context *context = llama_init_from_model(model, parameters);
    if (!context) fail_with("no context");
    if (!folded) {
        llama_set_adapters_lora(context, &adapter, 1, &whole);
        answer(context, &rows, 0, count);
    }
    for (int i = 0; folded && i < count; i++) {
        struct llama_adapter_lora *own = NULL;
        if (given[i] && tinylora_adapter(&own, model, bases, &vectors[i].basis, vectors[i].r, &why))
            fail_with(why.text);
        llama_set_adapters_lora(context, &own, own != NULL, &whole);
        answer(context, &rows, i, i + 1);
    }
    llama_free(context);
    llama_model_free(model);
    llama_backend_free();
    for (int i = 0; i < count; i++) tinylora_vector_free(vectors + i);
    tinylora_close(bases);
    return 0;
}
