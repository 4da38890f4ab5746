// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * /proc/gather: moves pages of processes next to each other.
 *
 * What a request touches lies scattered over the guest's memory, and a host pays for each
 * such page by itself; it can give a place of 2 MiB at once, for all guests if none writes
 * there. guest-init names pages. Those that belong to processes are moved to free pages of
 * one place: of all that have room for them, the one with the most of the others, which
 * cannot be moved (BESIDE, for what is written), or one that is free as a whole (APART, for
 * what is only read).
 *
 * write: which of the two, and numbers of pages, at most MOST, 32 bits each in the machine's
 *        byte order. They are moved in their order.
 * read:  how many were moved.
 */

#include <linux/gfp.h>
#include <linux/init.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/uaccess.h>

#include "internal.h"

/* Most pages that one write names. */
#define MOST 4096U
/* Where to. */
enum { BESIDE, APART };
/* Pages of a place: as many as a huge page has. */
#define PLACE_ORDER (PMD_SHIFT - PAGE_SHIFT)
#define PLACE (1UL << PLACE_ORDER)

/* One opening of the file. */
struct gather {
	unsigned int named;
	unsigned int moved;
	u32 where;
	/* Free pages to move others to. */
	struct list_head room;
	u32 pages[MOST];
};

/* Whether a page belongs to processes. Only a guess, until it is isolated. */
static bool is_movable(u32 pfn)
{
	struct page *page = pfn_valid(pfn) ? pfn_to_page(pfn) : NULL;

	return page && PageLRU(page) && PageAnon(page) && !PageCompound(page);
}

/* How many of the named pages cannot be moved and are in a place. */
static unsigned int fixed_in(const struct gather *gather, unsigned long place)
{
	unsigned int i, count = 0;

	for (i = 0; i < gather->named; i++)
		if (gather->pages[i] / PLACE == place && !is_movable(gather->pages[i]))
			count++;
	return count;
}

/* Visits a place's free blocks that lie in it. Those taken are added to `blocks`. */
static unsigned long free_in(unsigned long place, struct list_head *blocks)
{
	unsigned long pfn = place * PLACE, end = pfn + PLACE, flags, count = 0;
	struct zone *zone = page_zone(pfn_to_page(pfn));

	if (!pfn_valid(end - 1) || page_zone(pfn_to_page(end - 1)) != zone)
		return 0;
	spin_lock_irqsave(&zone->lock, flags);
	while (pfn < end) {
		struct page *page = pfn_to_page(pfn);
		unsigned long pages = 1;

		if (PageBuddy(page)) {
			unsigned int order = buddy_order(page);

			pages <<= order;
			/* One that is longer than the rest of the place is not of it. */
			if (pfn + pages > end)
				break;
			if (blocks) {
				if (!__isolate_free_page(page, order))
					break;
				set_page_private(page, order);
				list_add_tail(&page->lru, blocks);
			}
			count += pages;
		}
		pfn += pages;
	}
	spin_unlock_irqrestore(&zone->lock, flags);
	return count;
}

/* Adds a block that was allocated to where pages can be moved to, page by page. */
static void add_room(struct gather *gather, struct page *page, unsigned int order)
{
	unsigned int i;

	if (order)
		split_page(page, order);
	for (i = 0; i < 1U << order; i++)
		list_add_tail(&page[i].lru, &gather->room);
}

/* Takes a place's free pages. */
static void take_room(struct gather *gather, unsigned long place)
{
	struct page *page, *next;
	LIST_HEAD(blocks);

	free_in(place, &blocks);
	list_for_each_entry_safe(page, next, &blocks, lru) {
		unsigned int order = page_private(page);

		list_del(&page->lru);
		post_alloc_hook(page, order, __GFP_MOVABLE);
		set_page_refcounted(page);
		add_room(gather, page, order);
	}
}

/* Looks for the place to move pages to, and takes its free pages. */
static void find_room(struct gather *gather)
{
	unsigned long place, best = 0;
	unsigned int i, wanted = 0, most = 0;
	struct page *page;

	for (i = 0; i < gather->named; i++)
		wanted += is_movable(gather->pages[i]);
	if (!wanted)
		return;
	for (place = 0; gather->where == BESIDE && (place + 1) * PLACE <= max_pfn; place++) {
		unsigned int fixed = fixed_in(gather, place);

		if (fixed > most && free_in(place, NULL) >= min_t(unsigned int, wanted, PLACE)) {
			best = place;
			most = fixed;
		}
	}
	if (most) {
		take_room(gather, best);
		return;
	}
	page = alloc_pages(GFP_HIGHUSER_MOVABLE | __GFP_NORETRY | __GFP_NOWARN, PLACE_ORDER);
	if (page)
		add_room(gather, page, PLACE_ORDER);
}

static struct folio *next_target(struct folio *folio, unsigned long private)
{
	struct gather *gather = (struct gather *)private;
	struct page *page = list_first_entry_or_null(&gather->room, struct page, lru);

	if (!page)
		return NULL;
	list_del(&page->lru);
	return page_folio(page);
}

static void give_target_back(struct folio *folio, unsigned long private)
{
	struct gather *gather = (struct gather *)private;

	list_add(&folio->lru, &gather->room);
}

/* Moves one page, when it is one that can be moved. */
static void move(struct gather *gather, u32 pfn)
{
	struct folio *folio;
	LIST_HEAD(one);

	if (!is_movable(pfn))
		return;
	folio = folio_get_nontail_page(pfn_to_page(pfn));
	if (!folio)
		return;
	if (!folio_test_large(folio) && folio_test_anon(folio) && folio_isolate_lru(folio)) {
		list_add(&folio->lru, &one);
		node_stat_mod_folio(folio, NR_ISOLATED_ANON, 1);
	}
	/* Isolated, it has a reference of its own. */
	folio_put(folio);
	if (list_empty(&one))
		return;
	if (migrate_pages(&one, next_target, give_target_back, (unsigned long)gather,
			  MIGRATE_SYNC, MR_SYSCALL, NULL))
		putback_movable_pages(&one);
	else
		gather->moved++;
}

static ssize_t gather_write(struct file *file, const char __user *from, size_t len, loff_t *at)
{
	struct gather *gather = file->private_data;
	struct page *page, *next;
	unsigned int i;

	if (gather->named)
		return -EBUSY;
	if (len <= sizeof(u32) || len % sizeof(u32))
		return -EINVAL;
	if (len - sizeof(u32) > sizeof(gather->pages))
		return -EINVAL;
	if (copy_from_user(&gather->where, from, sizeof(u32)) || gather->where > APART)
		return -EINVAL;
	if (copy_from_user(gather->pages, from + sizeof(u32), len - sizeof(u32)))
		return -EFAULT;
	gather->named = len / sizeof(u32) - 1;
	/* What processors keep for themselves is neither movable nor free. */
	lru_add_drain_all();
	drain_all_pages(NULL);
	find_room(gather);
	for (i = 0; i < gather->named && !list_empty(&gather->room); i++)
		move(gather, gather->pages[i]);
	list_for_each_entry_safe(page, next, &gather->room, lru) {
		list_del(&page->lru);
		__free_page(page);
	}
	return len;
}

static ssize_t gather_read(struct file *file, char __user *to, size_t len, loff_t *at)
{
	const struct gather *gather = file->private_data;
	char text[16];
	int length = scnprintf(text, sizeof(text), "%u\n", gather->moved);

	return simple_read_from_buffer(to, len, at, text, length);
}

static int gather_open(struct inode *inode, struct file *file)
{
	struct gather *gather = kvzalloc(sizeof(*gather), GFP_KERNEL);

	if (!gather)
		return -ENOMEM;
	INIT_LIST_HEAD(&gather->room);
	file->private_data = gather;
	return 0;
}

static int gather_release(struct inode *inode, struct file *file)
{
	kvfree(file->private_data);
	return 0;
}

static const struct proc_ops gather_ops = {
	.proc_open = gather_open,
	.proc_write = gather_write,
	.proc_read = gather_read,
	.proc_lseek = default_llseek,
	.proc_release = gather_release,
};

static int __init gather_init(void)
{
	return proc_create("gather", 0600, NULL, &gather_ops) ? 0 : -ENOMEM;
}
late_initcall(gather_init);
