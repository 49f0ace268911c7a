/* A program around native/tinylora.c, which is written from docs/FORMAT.md alone. Vectors come on stdin, a text a line.
 *
 *     reader project SEED MODULE U K                a random projection of a module
 *     reader bases BASIS [BASE]                     what side tensors hold; with a base, whether it is one of theirs
 *     reader each                                   the same of each path on stdin, and the hash of an R of each basis
 *     reader texts                                  what each text on stdin, in hexadecimal, is
 *     reader vectors DIGEST N[/M/Q] USER DAY [KEY...]  check each vector of n numbers (of m modules and q inputs) for a basis
 *     reader apply BASIS USER DAY [KEY...]        the same among the bases of a file, and R of every module
 *     reader accept BASIS USER DAY [KEY...]       the same, where each that is accepted moves its mark
 *
 * DAY is today, from 1 on. KEY is hmac:HEX or ed25519:HEX. Signatures are printed and taken to verify: whoever reads the
 * output verifies them.
 */
#include "tinylora.c"

enum { LINE = 1 << 22, KEYS = 8 };

static tinylora_error why;

static void fail_with(const char *what) {
    fprintf(stderr, "reader: %s\n", what);
    exit(1);
}

static void *room(size_t size) {
    void *made = malloc(size ? size : 1);
    if (!made) fail_with("no memory");
    return made;
}

static void print_hex(const char *before, const void *data, size_t size) {
    fputs(before, stdout);
    for (size_t i = 0; i < size; i++) printf("%02x", ((const uint8_t *)data)[i]);
}

static int print_signed(void *data, const uint8_t key[32], const uint8_t *message, size_t size,
                        const uint8_t tag[64]) {
    print_hex("signed ", key, 32);
    print_hex(" ", message, size);
    print_hex(" ", tag, 64);
    putchar('\n');
    return data == NULL;
}

static tinylora_key key_of(const char *word) {
    tinylora_key key = {0};
    const char *digits = strchr(word, ':') + 1;
    uint8_t *bytes = room(strlen(digits));
    key.kind = *word == 'h' ? TINYLORA_HMAC : TINYLORA_ED25519;
    if (tinylora_text(digits, bytes, strlen(digits), &key.size, &why)) fail_with(why.text);
    key.bytes = bytes;
    return key;
}

/* What side tensors hold; `v`: numbers, 0.5 each, of which R is made of each basis that is not too large for that. */
static void show(const tinylora_bases *bases, const float *v) {
    printf("modules %u rank %u outputs %u bases %u\n", (unsigned)bases->modules, (unsigned)bases->rank,
           (unsigned)bases->outputs, (unsigned)bases->bases);
    print_hex("factors ", bases->digest, 32);
    for (uint32_t i = 0; i < bases->bases; i++) {
        tinylora_basis b;
        if (tinylora_basis_at(bases, i, &b, &why)) fail_with(why.text);
        print_hex("\n", b.digest, 32);
        printf(" %u %s", (unsigned)b.n, b.descriptor);
        if (v && (uint64_t)b.n * bases->modules <= 1 << 16) {
            size_t size = (size_t)bases->modules * b.outputs * b.rank * sizeof(float);
            float *r = room(size);
            uint8_t hash[32];
            sha256_of(r, tinylora_r(bases, i, v, INFINITY, r, &why) ? 0 : size, hash);
            print_hex(" ", hash, 4);
            free(r);
        }
    }
    putchar('\n');
}

static void show_each(void) {
    char path[4096];
    float *v = room(sizeof *v << 16);
    for (int i = 0; i < 1 << 16; i++) v[i] = 0.5f;
    while (fgets(path, sizeof path, stdin)) {
        tinylora_bases *bases;
        path[strcspn(path, "\n")] = 0;
        if (tinylora_open(&bases, path, NULL, &why)) printf("refused %s\n", why.text);
        if (bases) show(bases, v);
        tinylora_close(bases);
        fflush(stdout);
    }
    free(v);
}

static void show_texts(void) {
    char *line = room(LINE), *text = room(LINE);
    while (fgets(line, LINE, stdin)) {
        size_t size, most;
        uint8_t *data;
        line[strcspn(line, "\n")] = 0;
        if (tinylora_text(line, (uint8_t *)text, LINE - 1, &size, &why)) fail_with(why.text);
        text[size] = 0;
        data =
            room(most = (3 * size + 3) / 4); /* no more than the header says: a sanitizer watches the end */
        if (tinylora_text(text, data, most, &size, &why)) printf("refused %s", why.text);
        print_hex("", data, size);
        putchar('\n');
        fflush(stdout);
        free(data);
    }
    free(line);
    free(text);
}

/* Check the vectors on stdin: of n numbers and a digest, or, where there are bases, of one of them. */
static void check_lines(const uint8_t *digest, uint32_t n, const uint32_t *entries, const tinylora_bases *bases,
                        tinylora_policy *policy, int accept) {
    char *line = room(LINE);
    struct tinylora_own own = {0};
    tinylora_bases alone = {0}; /* of n entries, without a file */
    alone.modules = entries[0];
    alone.own = &own;
    own.modules = room((entries[0] + 1) * sizeof *own.modules);
    for (uint32_t m = 0; m < entries[0]; m++) own.modules[m].rows = n / (entries[0] * entries[1]);
    while (fgets(line, LINE, stdin)) {
        size_t size, length = strcspn(line, "\n"), most = (3 * length + 3) / 4;
        uint8_t *data = room(most); /* no more than the header says: a sanitizer watches the end */
        const uint8_t *named = NULL;
        tinylora_vector v = {0};
        int status;
        line[length] = 0;
        status = tinylora_text(line, data, most, &size, &why);
        v.basis.n = n;
        v.basis.rank = entries[1];
        v.basis.outputs = entries[0] ? n / (entries[0] * entries[1]) : 0;
        if (digest) memcpy(v.basis.digest, digest, 32);
        if (!bases) v.values = room(n * sizeof *v.values);
        if (!status && bases) status = tinylora_read(&v, bases, data, size, policy, &why);
        if (!status && !bases) status = read_form(data, size, &named, &v, &why);
        if (!status && !bases) status = check_frame(data, size, entries[0] ? &alone : NULL, policy, &v, &why);
        if (!status && accept) status = tinylora_accept(policy, &v, &why);
        if (status) {
            printf("refused %d %s\n", status, why.text);
        } else {
            printf("ok dtype %d tag %d sequence %u until %d key %d", v.dtype, v.tag,
                   (unsigned)v.mark.sequence, v.last_day, v.key);
            print_hex(" content ", v.mark.content, 16);
            print_hex(" values ", v.values, v.basis.n * sizeof *v.values);
            putchar('\n');
            if (bases) {
                print_hex("", v.r, (size_t)bases->modules * v.basis.outputs * v.basis.rank * sizeof *v.r);
                printf(" %s\n", v.basis.descriptor);
            }
        }
        fflush(stdout);
        free(data);
        tinylora_vector_free(&v);
    }
    free(own.modules);
    free(line);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    tinylora_key keys[KEYS];
    tinylora_policy policy = {.max_norm = 1000}; /* golden vectors are larger than trained ones */
    tinylora_bases *bases = NULL;
    if (argc == 6 && !strcmp(what, "project")) {
        uint32_t u = (uint32_t)atoi(argv[4]), k = (uint32_t)atoi(argv[5]);
        float *p = room((size_t)u * k * k * sizeof *p);
        project(strtoull(argv[2], NULL, 10), text_of(argv[3]), u, k, p);
        print_hex("", p, (size_t)u * k * k * sizeof *p);
        free(p);
        return 0;
    }
    if (argc < 3) {
        if (!strcmp(what, "each")) show_each();
        if (!strcmp(what, "texts")) show_texts();
        return 0;
    }
    if (strcmp(what, "vectors") &&
        tinylora_open(&bases, argv[2], !strcmp(what, "bases") ? argv[3] : NULL, &why))
        fail_with(why.text);
    if (!strcmp(what, "bases")) {
        show(bases, NULL);
    } else {
        int first = bases ? 3 : 4;
        uint8_t digest[32];
        size_t size;
        if (!bases && tinylora_text(argv[2], digest, sizeof digest, &size, &why)) fail_with(why.text);
        policy.user = argv[first];
        policy.today = atoi(argv[first + 1]);
        policy.verify = print_signed;
        policy.keys = argc > first + 2 ? keys : NULL;
        for (int i = first + 2; i < argc; i++) keys[policy.key_count++] = key_of(argv[i]);
        uint32_t n = 0, entries[2] = {0};
        if (!bases) sscanf(argv[3], "%" SCNu32 "/%" SCNu32 "/%" SCNu32, &n, entries, entries + 1);
        check_lines(bases ? NULL : digest, n, entries, bases, &policy, !strcmp(what, "accept"));
        for (size_t i = 0; i < policy.key_count; i++) free((void *)(uintptr_t)keys[i].bytes);
    }
    tinylora_close(bases);
    return 0;
}
