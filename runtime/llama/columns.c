/* R of each row, inside an evaluation, without the interpreter and its lock. columns.py describes it, and does the
 * same where this file is not built. It uses nothing of Python's C API: ctypes loads it. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* ggml's `ggml_tensor`, as columns.py has checked. */
struct tensor {
    int32_t type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int32_t op, op_params[16], flags;
    const struct tensor *src[10];
    void *view_src;
    size_t view_offs;
    void *data;
    char name[64];
    void *extra;
    char padding[8];
};

/* A module's tensor A, its place in R, its number of outputs, and whether a token has several experts. */
struct module {
    const struct tensor *a;
    int64_t number, outputs, experts;
};

/* R of a row, [M, p, q]; NULL: the base. */
struct row {
    const float *r;
    int64_t p, q;
};

/* What the callback works with. Modules are sorted by the addresses of their A, and rows are in the order of their
 * tokens. All rows have counts[1] tokens, or counts[0] where llama.cpp leaves out tokens without logits. After an
 * evaluation `failed` is 0, or 1 + the number of a module that was evaluated in a way that is not known here. */
struct columns {
    bool (*unknown)(struct tensor *, bool, void *); /* Python's callback, until the modules are known */
    bool (*is_host)(void *buffer);
    void (*get)(const struct tensor *, void *, size_t, size_t);
    void (*set)(struct tensor *, const void *, size_t, size_t);
    const struct module *modules;
    const struct row *rows;
    int64_t n_modules, n_rows, counts[2], failed;
};

static const struct module *find(const struct columns *self, const struct tensor *a) {
    int64_t begin = 0, end = self->n_modules;
    while (begin < end) {
        int64_t middle = (begin + end) / 2;
        if (self->modules[middle].a < a)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin < self->n_modules && self->modules[begin].a == a ? &self->modules[begin] : NULL;
}

/* Replace x[0..p) by R x[0..q), with zeros behind it. */
static void apply(float *x, int64_t outputs, const struct row *row, int64_t number, float *old) {
    int64_t p = row->p < outputs ? row->p : outputs, q = row->q;
    const float *r = row->r ? row->r + number * row->p * q : NULL;
    for (int64_t j = 0; r && j < q; j++)
        old[j] = x[j];
    for (int64_t i = 0; i < outputs; i++) {
        float sum = 0;
        for (int64_t j = 0; r && i < p && j < q; j++)
            sum += r[i * q + j] * old[j];
        x[i] = sum;
    }
}

static bool replace(struct columns *self, struct tensor *node, const struct module *module) {
    int64_t outputs = module->outputs, columns = node->ne[1] * node->ne[2] * node->ne[3];
    int64_t tokens = module->experts ? node->ne[2] : columns;
    size_t size = (size_t)(outputs * columns) * sizeof(float);
    if (!tokens)
        return true;
    self->failed = module->number + 1;
    if (node->ne[0] != outputs || node->nb[0] != sizeof(float) || node->nb[1] != sizeof(float) * (size_t)outputs ||
        (tokens != self->n_rows * self->counts[0] && tokens != self->n_rows * self->counts[1]))
        return false;
    bool host = self->is_host(node->buffer);
    float *old = malloc((size_t)outputs * sizeof(float) + (host ? 0 : size));
    if (!old)
        return false;
    float *x = host ? node->data : old + outputs;
    if (!host)
        self->get(node, x, 0, size);
    for (int64_t column = 0; column < columns; column++)
        apply(x + column * outputs, outputs, &self->rows[column / (columns / self->n_rows)], module->number, old);
    if (!host)
        self->set(node, x, 0, size);
    free(old);
    self->failed = 0;
    return true;
}

/* What llama.cpp calls between the nodes of a graph: `ggml_backend_sched_eval_callback`. */
EXPORT bool tinylora_columns(struct tensor *node, bool ask, struct columns *self) {
    if (!self->n_modules)
        return self->unknown(node, ask, NULL);
    const struct module *module = find(self, node->src[0]);
    return ask ? module != NULL : module && replace(self, node, module);
}

/* setuptools has linkers on Windows export this name, so it has to be there. */
EXPORT void *PyInit__columns(void) { return NULL; }
