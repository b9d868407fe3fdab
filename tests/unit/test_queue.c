/* Which waiting request goes next: begun ones in the order of the input, then the longest; against a sort of all of them. */
#include "batch/queue.h"

#include <CUnit/Basic.h>
#include <stdlib.h>

enum { COUNT = 500 };

static uint64_t random_state = 7;

static unsigned next_random(unsigned bound) /* splitmix64 */
{
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (unsigned)((z ^ z >> 31) % bound);
}

static int by_order(const void *x, const void *y)
{
    const struct gw_waiting *a = x, *b = y;
    if (a->begun != b->begun) return a->begun ? -1 : 1;
    if (!a->begun && a->cost != b->cost) return a->cost > b->cost ? -1 : 1;
    return a->index < b->index ? -1 : 1;
}

static void test_order(void)
{
    struct gw_queue queue = {0};
    struct gw_waiting all[COUNT], item;
    CU_ASSERT_FALSE(gw_queue_take(&queue, &item));
    for (int i = 0; i < COUNT; i++) {
        all[i] = (struct gw_waiting){.index = i, .cost = next_random(40), .begun = next_random(10) == 0};
        gw_queue_add(&queue, all[i]);
    }
    qsort(all, COUNT, sizeof *all, by_order);
    for (int i = 0; i < COUNT; i++) {
        CU_ASSERT_TRUE_FATAL(gw_queue_take(&queue, &item));
        CU_ASSERT_EQUAL(item.index, all[i].index);
    }
    CU_ASSERT_FALSE(gw_queue_take(&queue, &item));
    gw_queue_free(&queue);
}

/* What is dropped is not taken, the rest in order still. */
static void test_drop(void)
{
    struct gw_queue queue = {0};
    struct gw_waiting item;
    bool dropped[COUNT] = {false};
    for (int i = 0; i < COUNT; i++) gw_queue_add(&queue, (struct gw_waiting){.index = i, .cost = COUNT - i});
    for (int i = 0; i < COUNT; i += 1 + (int)next_random(4)) {
        CU_ASSERT_TRUE(gw_queue_drop(&queue, i, &item));
        CU_ASSERT_EQUAL(item.cost, COUNT - i);
        CU_ASSERT_FALSE(gw_queue_drop(&queue, i, &item));
        dropped[i] = true;
    }
    for (int i = 0; i < COUNT; i++) {
        if (dropped[i]) continue;
        CU_ASSERT_TRUE_FATAL(gw_queue_take(&queue, &item));
        CU_ASSERT_EQUAL(item.index, i);
    }
    CU_ASSERT_EQUAL(queue.count, 0);
    gw_queue_free(&queue);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("queue", NULL, NULL);
    CU_add_test(suite, "order", test_order);
    CU_add_test(suite, "drop", test_drop);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
