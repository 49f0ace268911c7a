/* A program around the reader of tinylora-edge's formats, examples/native/reader, which is written from docs/FORMAT.md
 * alone. Vectors come on stdin, a text a line.
 *
 *     reader project SEED MODULE U K             a random projection of a module
 *     reader bases BASIS [BASE]                  what side tensors are, and whether the base is listed
 *     reader vectors DIGEST N KEY [STREAM DAY]   check each vector; KEY is hexadecimal or -
 *     reader apply BASIS KEY [STREAM DAY]        the same among the bases of a file, and R of every module
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "basis.h"
#include "hash.h"
#include "vector.h"

enum { LINE = 1 << 22 };

static void fail(const char *what) {
    fprintf(stderr, "reader: %s\n", what);
    exit(1);
}

static void *room(size_t size) {
    void *made = malloc(size ? size : 1);
    if (!made) fail("no memory");
    return made;
}

static void print_hex(const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) printf("%02x", ((const uint8_t *)data)[i]);
}

static void print_floats(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, 4);
        for (int shift = 0; shift < 32; shift += 8) printf("%02x", (unsigned)(bits >> shift & 0xFF));
    }
}

static uint8_t *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    uint8_t *data;
    long end;
    if (!file || fseek(file, 0, SEEK_END) || (end = ftell(file)) < 0) fail(path);
    rewind(file);
    data = room((size_t)end);
    *size = fread(data, 1, (size_t)end, file);
    fclose(file);
    return data;
}

static size_t bytes_of(const char *hex, uint8_t *out) {
    size_t size;
    const char *error = text_decode(hex, strlen(hex), out, &size);
    if (error) fail(error);
    return size;
}

/* What the arguments trust; the key is written into `secret`. */
static trust trust_of(const char *key, uint8_t secret[4096], const char *stream, int today) {
    trust trusted = {NULL, 0, NULL, TAG_NONE, stream, today};
    if (strcmp(key, "-")) {
        if (strlen(key) > 4096) fail("a key that long");
        trusted.hmac_key_size = bytes_of(key, secret);
        trusted.hmac_key = secret;
    }
    return trusted;
}

/* Check the vectors on stdin: of n numbers and a digest, or, where there are factors, of one of their bases. */
static void check_lines(const uint8_t *digest, uint64_t n, const factors *f, trust trusted) {
    char *line = room(LINE);
    while (fgets(line, LINE, stdin)) {
        size_t size, length = strcspn(line, "\n");
        uint8_t *data = room((3 * length + 3) / 4); /* as vector.h says, and no more: a sanitizer watches the end */
        basis b = {.n = n};
        vector_head head;
        float *values = NULL, *r = NULL;
        size_t entries = 0;
        const char *error = text_decode(line, length, data, &size);
        if (!error && f) error = basis_of(f, data, size, &b);
        if (!error) {
            values = room((size_t)b.n * sizeof *values);
            error = vector_check(data, size, (size_t)b.n, f ? b.digest : digest, &trusted, &head, values);
        }
        if (!error && f) {
            entries = (size_t)f->count * b.rank * b.rank;
            r = room(entries * sizeof *r);
            error = basis_r(f, &b, values, 1000, r);
        }
        if (error) {
            printf("refused %s\n", error);
        } else {
            printf("ok version %d dtype %d tag %d sequence %d until %d values ", head.version, head.dtype, head.tag,
                   head.sequence, head.until);
            print_floats(values, (size_t)b.n);
            putchar('\n');
            if (f) print_floats(r, entries);
            if (f) printf(" %s\n", b.descriptor);
        }
        free(data);
        free(values);
        free(r);
    }
    free(line);
}

static void show(const factors *f, const char *base) {
    printf("architecture %.*s\n", (int)f->architecture.size, (const char *)f->architecture.at);
    printf("modules %u rank %u\n", f->count, f->rank);
    printf("factors ");
    print_hex(f->digest, 32);
    putchar('\n');
    for (uint32_t i = 0; i < f->bases; i++) {
        basis b;
        const char *error = basis_at(f, i, &b);
        if (error) fail(error);
        print_hex(b.digest, 32);
        printf(" %u %s\n", (unsigned)b.n, b.descriptor);
    }
    if (base) {
        size_t size;
        uint8_t *data = read_file(base, &size), print[32];
        gguf file;
        const char *error = gguf_open(&file, data, size);
        if (!error) error = fingerprint(f, &file, print);
        if (error) fail(error);
        printf("fingerprint ");
        print_hex(print, 32);
        printf(" %s\n", fingerprint_is_listed(f, print) ? "listed" : "unknown");
        free(data);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (argc == 6 && !strcmp(what, "project")) {
        text name = {(const uint8_t *)argv[3], strlen(argv[3])};
        uint32_t u = (uint32_t)atoi(argv[4]), k = (uint32_t)atoi(argv[5]);
        float *p = room((size_t)u * k * k * sizeof *p);
        project(strtoull(argv[2], NULL, 10), name, u, k, p);
        print_floats(p, (size_t)u * k * k);
        putchar('\n');
        free(p);
    } else if ((argc == 5 || argc == 7) && !strcmp(what, "vectors")) {
        uint8_t digest[64], secret[4096];
        trust trusted = trust_of(argv[4], secret, argc == 7 ? argv[5] : NULL, argc == 7 ? atoi(argv[6]) : 0);
        if (strlen(argv[2]) != 64 || bytes_of(argv[2], digest) != 32) fail("DIGEST is 64 hexadecimal digits");
        check_lines(digest, strtoul(argv[3], NULL, 10), NULL, trusted);
    } else if ((argc >= 3 && argc <= 4 && !strcmp(what, "bases")) ||
               ((argc == 4 || argc == 6) && !strcmp(what, "apply"))) {
        size_t size;
        uint8_t *data = read_file(argv[2], &size), secret[4096];
        factors f;
        const char *error = factors_open(&f, data, size);
        if (error) {
            free(f.modules);
            free(data);
            fail(error);
        }
        if (!strcmp(what, "bases"))
            show(&f, argc == 4 ? argv[3] : NULL);
        else
            check_lines(NULL, 0, &f, trust_of(argv[3], secret, argc == 6 ? argv[4] : NULL, argc == 6 ? atoi(argv[5]) : 0));
        free(f.modules);
        free(data);
    } else {
        fail("unknown command: see main.c");
    }
    return 0;
}
