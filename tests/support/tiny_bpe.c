/* See tiny_bpe.h. Byte pair encoding as in Sennrich, Haddow, Birch: "Neural Machine Translation of Rare Words with Subword Units",
 * ACL 2016, over bytes. The text is small, so each merge simply counts all pairs again. */
#include "support/tiny_bpe.h"

#include "support/tiny_model.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

const char gw_tiny_text[] =
    "The bar-tailed godwit is a large wading bird. It breeds on the coasts and tundra of the north, and spends the "
    "winter on the "
    "shores of the south. No other bird flies as far without a stop: one of them was followed by satellite from Alaska "
    "to Tasmania, "
    "eleven thousand kilometres in eleven days and nights, over the open water of the Pacific Ocean, where there is "
    "nothing to "
    "eat and nowhere to land.\n"
    "Before the journey the birds eat until half of their weight is fat. Their stomachs and livers shrink, because "
    "they will not be "
    "needed on the way. Then they wait for the right wind. When a storm has passed and the wind blows from behind, "
    "whole flocks "
    "rise in the evening and set out over the sea. They fly at night and by day; they sleep, if they sleep at all, "
    "with one half of the "
    "brain at a time. When the wind changes, they change their height to find a better one, and when it is against "
    "them, they "
    "keep on flying.\n"
    "What can we learn from the bird? That a long journey does not need to be fast everywhere, but that it must never "
    "have to begin "
    "again. That it is better to know the weather than to fight it. That those who travel together arrive, even when "
    "some of them "
    "are lost. A computer that works for days on a large problem is in the same position: machines fail, and other "
    "people need them. "
    "If each interruption throws away what has been done, then the work may never end. If the work is kept in small "
    "and safe "
    "steps, then an interruption costs only a few seconds, and the answer is the same as if nothing had happened.\n"
    "How does one write such a program? First one has to know what was done, and what was not. A list on the disk says "
    "it, one line "
    "for each step, and a line is only added when the step is complete. Second, every step must give the same result "
    "wherever it is "
    "computed: on one machine or on ten, today or tomorrow. Third, somebody must notice when a machine goes away, and "
    "somebody else must "
    "take over its part of the work. The rest is patience, and testing: you pull the plug again and again, and you "
    "look whether the "
    "answer is still right. It should be, because numbers do not care about the weather.\n"
    "for (int i = 0; i < count; i++) { sum = sum + value[i]; } return sum;\n"
    "def main(): print(\"Hello, world!\") if __name__ == \"__main__\": main()\n";

struct word {
    int *ids;
    int length;
    int times;
};

struct words {
    struct word *items;
    int count;
};

/* The piece at `text`: one space at most, then letters, or a single other character. Every pre-tokenizer splits there too,
 * so that the learned merges are used whatever tokenizer.ggml.pre says. */
static size_t piece_bytes(const char *text)
{
    size_t n = text[0] == ' ' && isalpha((unsigned char)text[1]) ? 1 : 0;
    if (!isalpha((unsigned char)text[n])) return 1;
    while (isalpha((unsigned char)text[n])) n++;
    return n;
}

static void add_word(struct words *words, const char *text, size_t bytes)
{
    int *ids = gw_alloc(bytes, sizeof *ids);
    for (size_t i = 0; i < bytes; i++) ids[i] = GW_TINY_SPECIALS + (unsigned char)text[i];
    for (int w = 0; w < words->count; w++)
        if (words->items[w].length == (int)bytes && memcmp(words->items[w].ids, ids, bytes * sizeof *ids) == 0) {
            words->items[w].times++;
            free(ids);
            return;
        }
    words->items = gw_realloc(words->items, (size_t)words->count + 1, sizeof *words->items);
    words->items[words->count++] = (struct word){ids, (int)bytes, 1};
}

/* The most frequent pair of ids below `ids`; false when no pair is left. */
static bool best_pair(const struct words *words, int ids, int pair[2])
{
    int best = 0;
    int *counts = gw_alloc((size_t)ids * (size_t)ids, sizeof *counts); /* [left][right] */
    for (int w = 0; w < words->count; w++) {
        const struct word *word = &words->items[w];
        for (int i = 0; i + 1 < word->length; i++) counts[word->ids[i] * ids + word->ids[i + 1]] += word->times;
    }
    for (int at = 0; at < ids * ids; at++)
        if (counts[at] > best) {
            best = counts[at];
            pair[0] = at / ids;
            pair[1] = at % ids;
        }
    free(counts);
    return best > 0;
}

static void apply(struct words *words, const int pair[2], int merged)
{
    for (int w = 0; w < words->count; w++) {
        struct word *word = &words->items[w];
        int kept = 0;
        for (int i = 0; i < word->length; i++) {
            bool joined = i + 1 < word->length && word->ids[i] == pair[0] && word->ids[i + 1] == pair[1];
            word->ids[kept++] = joined ? merged : word->ids[i];
            if (joined) i++;
        }
        word->length = kept;
    }
}

void gw_tiny_bpe_learn(int merges, struct gw_tiny_bpe *bpe)
{
    struct words words = {0};
    int ids = GW_TINY_SPECIALS + 256;
    *bpe = (struct gw_tiny_bpe){0, gw_alloc((size_t)merges, sizeof *bpe->merges)};
    for (const char *at = gw_tiny_text; *at; at += piece_bytes(at)) add_word(&words, at, piece_bytes(at));
    while (bpe->merge_count < merges && best_pair(&words, ids, bpe->merges[bpe->merge_count]))
        apply(&words, bpe->merges[bpe->merge_count++], ids++);
    for (int w = 0; w < words.count; w++) free(words.items[w].ids);
    free(words.items);
}

void gw_tiny_bpe_free(struct gw_tiny_bpe *bpe)
{
    free(bpe->merges);
    *bpe = (struct gw_tiny_bpe){0};
}

/* GPT-2 shows printable Latin-1 bytes as themselves and numbers the others from U+0100 on. */
static void spell_byte(int byte, struct gw_buf *text)
{
    int code = 0x100;
    for (int b = 0; b <= byte; b++) {
        bool printable = (b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad);
        if (b == byte && printable) code = b;
        if (b < byte && !printable) code++;
    }
    char utf8[2] = {(char)code, 0};
    if (code < 0x80) {
        gw_buf_add(text, utf8, 1);
        return;
    }
    utf8[0] = (char)(0xc0 | code >> 6);
    utf8[1] = (char)(0x80 | (code & 0x3f));
    gw_buf_add(text, utf8, 2);
}

void gw_tiny_bpe_spell(const struct gw_tiny_bpe *bpe, int id, struct gw_buf *text)
{
    int merge = id - GW_TINY_SPECIALS - 256;
    if (merge < 0) {
        spell_byte(id - GW_TINY_SPECIALS, text);
        return;
    }
    gw_tiny_bpe_spell(bpe, bpe->merges[merge][0], text);
    gw_tiny_bpe_spell(bpe, bpe->merges[merge][1], text);
}
