/* R of each row, inside an evaluation, without the interpreter and its lock. columns.py describes it, and does the
 * same where this file is not built. It uses nothing of Python's C API: ctypes loads it. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

/* A graph's operation of one's own, as ggml keeps it in `op_params`; columns.py has checked it. ggml calls it once in
 * each of its threads. */
struct custom {
    void (*compute)(struct tensor *, int thread, int threads, void *);
    int32_t threads; /* -1: all */
    void *columns;
};

/* What the callback works with. Modules are sorted by the addresses of their A, and rows are in the order of their
 * tokens. All rows have counts[1] tokens, or counts[0] where llama.cpp leaves out tokens without logits. After an
 * evaluation `failed` and `pending` are 0, or 1 + the number of a module that was evaluated in a way that is not known
 * here. */
struct columns {
    bool (*unknown)(struct tensor *, bool, void *); /* Python's callback, until the modules are known */
    bool (*is_host)(void *buffer);
    void (*get)(const struct tensor *, void *, size_t, size_t);
    void (*set)(struct tensor *, const void *, size_t, size_t);
    const struct module *modules;
    const struct row *rows;
    int64_t n_modules, n_rows, counts[2], failed;
    int64_t custom;  /* the number of ggml's operation of one's own; 0: the graph stops at each module */
    int64_t pending; /* 1 + the number of a module whose A x is an operation here, but whose B (A x) is none yet */
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

/* Whether a node A x has float32 columns, one after the other, for each token of the rows. */
static bool is_known(const struct columns *self, const struct tensor *node, int64_t outputs, int64_t tokens) {
    return node->ne[0] == outputs && node->nb[0] == sizeof(float) && node->nb[1] == sizeof(float) * (size_t)outputs &&
           (tokens == self->n_rows * self->counts[0] || tokens == self->n_rows * self->counts[1]);
}

static bool replace(struct columns *self, struct tensor *node, const struct module *module) {
    int64_t outputs = module->outputs, columns = node->ne[1] * node->ne[2] * node->ne[3];
    int64_t tokens = module->experts ? node->ne[2] : columns;
    size_t size = (size_t)(outputs * columns) * sizeof(float);
    if (!tokens)
        return true;
    self->failed = module->number + 1;
    if (!is_known(self, node, outputs, tokens))
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

/* glibc's loader chooses a function of the processor's kind. Elsewhere compilers do as they are told. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define WIDE __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define WIDE
#endif

enum { LANES = 32, TOGETHER = 8 };

/* Column `column` of a tensor whose ne[0] values lie one after the other. */
static inline float *column_of(const struct tensor *of, int64_t column) {
    int64_t second = column / of->ne[1], third = second / of->ne[2];
    return (float *)((char *)of->data + (size_t)(column % of->ne[1]) * of->nb[1] +
                     (size_t)(second % of->ne[2]) * of->nb[2] + (size_t)third * of->nb[3]);
}

/* A x: of each column the q values that its row's R reads. Threads share the values. */
WIDE static void compute_inner(struct tensor *node, int thread, int threads, void *data) {
    const struct columns *self = data;
    const struct tensor *a = node->src[0], *x = node->src[1];
    int64_t columns = node->ne[1] * node->ne[2] * node->ne[3], inputs = a->ne[0], total = 0, at = 0;
    int64_t per_row = columns / self->n_rows;
    for (int64_t row = 0; row < self->n_rows; row++)
        total += self->rows[row].r ? self->rows[row].q * per_row : 0;
    int64_t begin = total * thread / threads, end = total * (thread + 1) / threads;
    for (int64_t column = 0; column < columns && at < end; column++) {
        const struct row *row = &self->rows[column / per_row];
        int64_t q = row->r ? row->q : 0;
        const float *input = column_of(x, column);
        float *output = column_of(node, column);
        for (int64_t j = at < begin ? begin - at : 0; j < q && at + j < end; j++) {
            const float *weights = (const float *)((const char *)a->data + (size_t)j * a->nb[1]);
            float lanes[LANES] = {0}, sum = 0;
            int64_t i = 0;
            for (; i + LANES <= inputs; i += LANES)
                for (int l = 0; l < LANES; l++)
                    lanes[l] += weights[i + l] * input[i + l];
            for (int half = LANES / 2; half; half /= 2)
                for (int l = 0; l < half; l++)
                    lanes[l] += lanes[l + half];
            for (; i < inputs; i++)
                sum += weights[i] * input[i];
            output[j] = lanes[0] + sum;
        }
        at += q;
    }
}

/* B (R y) of y = A x, where B's tensor holds B^T: a thread computes its part of the outputs of each column. */
WIDE static void compute_outer(struct tensor *node, int thread, int threads, void *data) {
    const struct columns *self = data;
    const struct tensor *b = node->src[0], *y = node->src[1];
    int64_t columns = node->ne[1] * node->ne[2] * node->ne[3], width = b->ne[1], rank = b->ne[0];
    int64_t number = find(self, y->src[0])->number, per_row = columns / self->n_rows;
    int64_t begin = width * thread / threads, end = width * (thread + 1) / threads;
    for (int64_t column = 0; column < columns; column++) {
        const struct row *row = &self->rows[column / per_row];
        float *output = column_of(node, column);
        const float *inner = column_of(y, column);
        memset(output + begin, 0, (size_t)(end - begin) * sizeof(float));
        if (!row->r)
            continue;
        const float *r = row->r + number * row->p * row->q;
        int64_t p = row->p < rank ? row->p : rank, q = row->q;
        for (int64_t i = 0; i < p; i += TOGETHER) {
            int64_t some = p - i < TOGETHER ? p - i : TOGETHER;
            float z[TOGETHER] = {0};
            const float *weights[TOGETHER];
            for (int64_t k = 0; k < TOGETHER; k++) {
                /* Beyond `some` a row is read again, and its z is 0. */
                weights[k] = (const float *)b->data + (i + (k < some ? k : 0)) * width;
                for (int64_t j = 0; k < some && j < q; j++)
                    z[k] += r[(i + k) * q + j] * inner[j];
            }
            for (int64_t o = begin; o < end; o++) {
                float sum = output[o];
                for (int k = 0; k < TOGETHER; k++)
                    sum += z[k] * weights[k][o];
                output[o] = sum;
            }
        }
    }
}

/* Have ggml compute a node by a function of this file. */
static void set_operation(struct columns *self, struct tensor *node,
                          void (*compute)(struct tensor *, int, int, void *)) {
    struct custom custom = {compute, -1, self};
    node->op = (int32_t)self->custom;
    memcpy(node->op_params, &custom, sizeof custom);
}

/* Turn A x and B (A x) into operations of this file. Returns whether llama.cpp has to stop at the node. */
static bool turn(struct columns *self, struct tensor *node) {
    const struct module *module = find(self, node->src[0]);
    const struct tensor *y = node->src[1];
    if (module) {
        if (module->experts)
            return true;
        int64_t tokens = node->ne[1] * node->ne[2] * node->ne[3];
        if (tokens && (!is_known(self, node, module->outputs, tokens) || y->type != node->type ||
                       y->nb[0] != sizeof(float))) {
            self->failed = module->number + 1;
            return true;
        }
        set_operation(self, node, compute_inner);
        if (!self->pending)
            self->pending = module->number + 1;
    } else if (y && (module = find(self, y->src[0])) && !module->experts && y->op == self->custom &&
               node->src[0]->ne[0] == module->outputs) {
        set_operation(self, node, compute_outer);
        if (self->pending == module->number + 1)
            self->pending = 0;
    }
    return false;
}

/* What llama.cpp calls between the nodes of a graph: `ggml_backend_sched_eval_callback`. */
EXPORT bool tinylora_columns(struct tensor *node, bool ask, struct columns *self) {
    if (!self->n_modules)
        return self->unknown(node, ask, NULL);
    if (ask && self->custom)
        return turn(self, node);
    const struct module *module = find(self, node->src[0]);
    return ask ? module != NULL : module && !self->failed && replace(self, node, module);
}

/* setuptools has linkers on Windows export this name, so it has to be there. */
EXPORT void *PyInit__columns(void) { return NULL; }
