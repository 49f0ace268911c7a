/* What gguf.c gives to basis.c. */
#ifndef READING_H
#define READING_H

#include "basis.h"

enum { U32 = 4, STRING = 8, ARRAY = 9 };

typedef struct {
    const uint8_t *at, *end;
    int failed; /* once it is set, nothing more is read, and everything is 0 */
} cursor;

const uint8_t *take(cursor *c, uint64_t size);
uint64_t take_number(cursor *c, int size);
text take_text(cursor *c);
int is(text t, const char *word);
cursor find_key(const gguf *file, const char *name, uint32_t *type); /* at its value; failed: there is none */
const char *find_tensor(const gguf *file, text name, const char *suffix, tensor *t);

#endif
