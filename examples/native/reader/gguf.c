/* The container, read without trust: every count, length and offset is checked against the size of the file. */
#include <string.h>

#include "reading.h"

/* Types by number: values a block, bytes a block. 0: there is no such type. */
static const uint16_t TYPES[42][2] = {
    [0] = {1, 4},     [1] = {1, 2},     [2] = {32, 18},   [3] = {32, 20},   [6] = {32, 22},   [7] = {32, 24},
    [8] = {32, 34},   [9] = {32, 40},   [10] = {256, 84}, [11] = {256, 110}, [12] = {256, 144}, [13] = {256, 176},
    [14] = {256, 210}, [15] = {256, 292}, [16] = {256, 66}, [17] = {256, 74}, [18] = {256, 98}, [19] = {256, 50},
    [20] = {32, 18},  [21] = {256, 110}, [22] = {256, 82}, [23] = {256, 136}, [24] = {1, 1},    [25] = {1, 2},
    [26] = {1, 4},    [27] = {1, 8},    [28] = {1, 8},    [29] = {256, 56}, [30] = {1, 2},    [34] = {256, 54},
    [35] = {256, 66}, [39] = {32, 17},  [40] = {64, 36},  [41] = {128, 18},
};

static const uint8_t ITEM_BYTES[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

const uint8_t *take(cursor *c, uint64_t size) {
    const uint8_t *at = c->at;
    if (c->failed || size > (uint64_t)(c->end - c->at)) {
        c->failed = 1;
        return NULL;
    }
    c->at += size;
    return at;
}

uint64_t take_number(cursor *c, int size) {
    const uint8_t *at = take(c, (uint64_t)size);
    uint64_t value = 0;
    for (int i = 0; at && i < size; i++) value |= (uint64_t)at[i] << 8 * i;
    return value;
}

text take_text(cursor *c) {
    text t = {NULL, take_number(c, 8)};
    t.at = take(c, t.size);
    if (c->failed) t.size = 0;
    return t;
}

static void skip_value(cursor *c, uint32_t type) {
    uint64_t count = 1;
    if (type == ARRAY) {
        type = (uint32_t)take_number(c, 4);
        count = take_number(c, 8);
    }
    if (type == STRING) {
        while (count-- && !c->failed) take_text(c);
    } else if (type > 12 || !ITEM_BYTES[type] || count > UINT64_MAX / 8) {
        c->failed = 1;
    } else {
        take(c, count * ITEM_BYTES[type]);
    }
}

int is(text t, const char *word) { return t.size == strlen(word) && !memcmp(t.at, word, t.size); }

cursor find_key(const gguf *file, const char *name, uint32_t *type) {
    cursor c = {file->keys, file->data + file->size, 0};
    for (uint64_t i = 0; i < file->key_count; i++) {
        text found = take_text(&c);
        *type = (uint32_t)take_number(&c, 4);
        if (!c.failed && is(found, name)) return c;
        skip_value(&c, *type);
    }
    c.failed = 1;
    return c;
}

static const char *take_entry(cursor *c, const gguf *file, tensor *t) {
    uint64_t count = 1, offset, room = file->tensors ? (uint64_t)(file->data + file->size - file->tensors) : 0;
    t->name = take_text(c);
    t->dimensions = (uint32_t)take_number(c, 4);
    if (c->failed || !t->dimensions || t->dimensions > 4) return "tensor";
    for (uint32_t i = t->dimensions; i-- > 0;) { /* the file has the fastest first */
        uint64_t d = t->shape[i] = take_number(c, 8);
        if (!d || d > UINT64_MAX / 512 / count) return "dimensions of a tensor";
        count *= d;
    }
    t->type = (uint32_t)take_number(c, 4);
    offset = take_number(c, 8);
    if (c->failed || t->type >= 42 || !TYPES[t->type][0]) return "type of a tensor";
    if (t->shape[t->dimensions - 1] % TYPES[t->type][0]) return "a row that is no whole number of blocks";
    t->size = count / TYPES[t->type][0] * TYPES[t->type][1];
    if (!file->tensors) return NULL; /* the data's place is known only after the last entry */
    if (offset > room || t->size > room - offset) return "tensor behind the end of the file";
    t->data = file->tensors + offset;
    return NULL;
}

const char *find_tensor(const gguf *file, text name, const char *suffix, tensor *t) {
    cursor c = {file->entries, file->data + file->size, 0};
    size_t more = strlen(suffix);
    for (uint64_t i = 0; i < file->tensor_count; i++) {
        const char *error = take_entry(&c, file, t);
        if (error) return error;
        if (t->name.size == name.size + more && !memcmp(t->name.at, name.at, name.size) &&
            !memcmp(t->name.at + name.size, suffix, more))
            return NULL;
    }
    return "a tensor is missing";
}

const char *gguf_open(gguf *file, const uint8_t *data, uint64_t size) {
    cursor c = {data, data + size, 0}, found;
    uint64_t alignment = 32, used;
    uint32_t type, version;
    const uint8_t *magic = take(&c, 4);
    version = (uint32_t)take_number(&c, 4);
    memset(file, 0, sizeof *file);
    file->data = data;
    file->size = size;
    file->tensor_count = take_number(&c, 8);
    file->key_count = take_number(&c, 8);
    if (c.failed || memcmp(magic, "GGUF", 4) || (version != 2 && version != 3)) return "no GGUF file";
    file->keys = c.at;
    for (uint64_t i = 0; i < file->key_count && !c.failed; i++) {
        take_text(&c);
        skip_value(&c, (uint32_t)take_number(&c, 4));
    }
    if (c.failed) return "keys cut";
    file->entries = c.at;
    found = find_key(file, "general.alignment", &type);
    if (!found.failed) alignment = type == U32 ? take_number(&found, 4) : 0;
    if (!alignment) return "alignment";
    for (uint64_t i = 0; i < file->tensor_count; i++) {
        tensor t;
        const char *error = take_entry(&c, file, &t);
        if (error) return error;
    }
    used = (uint64_t)(c.at - data);
    used += (alignment - used % alignment) % alignment;
    if (used > size && file->tensor_count) return "data cut";
    file->tensors = used > size ? data + size : data + used;
    return NULL;
}
