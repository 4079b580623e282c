/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What differs between the two loaders, as the ahead-of-time CO-RE build has it. bcc.h is its counterpart. */
#ifndef LLMSEC_CORE_H
#define LLMSEC_CORE_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "event.h"
#include "registers.h"
#include "state.h"

/* Set by the loader before load; read-only afterwards, so the verifier removes what is switched off. */
const volatile struct tap_config config = {};

#define ONLY_TARGETS config.only_targets
#define FOLLOW_FORKS config.follow_forks
#define WATCH_ALL config.watch_all
#define OWN_PID config.own_pid
#define HELPER_PID config.helper_pid
#define LISTENER_PID config.listener_pid
#define SELECT_COMM config.select_comm
#define RINGS config.rings
#define PLAIN config.plain

struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* the loader makes them, of another size */
};

/* A ring for each process that decodes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, TAP_MAX_RINGS);
	__type(key, __u32);
	__array(values, struct ring);
} rings SEC(".maps");

/* Processes only, for the side that attaches: it holds no parser of traffic, so traffic does not go through its ring. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, TAP_PROCESS_RING_BYTES);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TAP_MAX_TARGETS);
	__type(key, __u32);
	__type(value, __u32);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TAP_MAX_COMMS);
	__type(key, struct comm_key);
	__type(value, __u32);
} comms SEC(".maps");

/* LRU: an entry is left over only where the end of a thread or connection cannot be seen, and must not fill the map. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TAP_MAX_THREADS);
	__type(key, __u64);
	__type(value, struct thread);
} threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TAP_MAX_THREADS);
	__type(key, struct connection_key);
	__type(value, struct call);
} go_calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TAP_MAX_CONNECTIONS);
	__type(key, struct connection_key);
	__type(value, struct connection);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TAP_MAX_SOCKETS);
	__type(key, __u64);
	__type(value, struct plain_socket);
} plain_sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TAP_TOTALS);
	__type(key, __u32);
	__type(value, __u64);
} totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} turns SEC(".maps");

#define MAP_ACCESS(map, key_type, value_type)                                                                      \
	static __always_inline value_type *map##_lookup(const key_type *key)                                       \
	{                                                                                                          \
		return bpf_map_lookup_elem(&map, key);                                                             \
	}                                                                                                          \
	static __always_inline void map##_update(const key_type *key, const value_type *value)                    \
	{                                                                                                          \
		bpf_map_update_elem(&map, key, value, BPF_ANY);                                                    \
	}                                                                                                          \
	static __always_inline void map##_delete(const key_type *key)                                              \
	{                                                                                                          \
		bpf_map_delete_elem(&map, key);                                                                    \
	}

MAP_ACCESS(targets, __u32, __u32)
MAP_ACCESS(comms, struct comm_key, __u32)
MAP_ACCESS(threads, __u64, struct thread)
MAP_ACCESS(go_calls, struct connection_key, struct call)
MAP_ACCESS(connections, struct connection_key, struct connection)
MAP_ACCESS(plain_sockets, __u64, struct plain_socket)

static __always_inline __u64 *totals_lookup(const __u32 *key)
{
	return bpf_map_lookup_elem(&totals, key);
}

static __always_inline __u32 *turns_lookup(const __u32 *key)
{
	return bpf_map_lookup_elem(&turns, key);
}

static __always_inline void *rings_lookup(const __u32 *key)
{
	return bpf_map_lookup_elem(&rings, key);
}

#define GLOBAL_SUBPROGRAM __attribute__((noinline))
/* A map's key that a global function was handed: Linux 6.1's verifier takes it from the stack alone. */
#define KEY_OF_ARGUMENT(name, from) struct connection_key name##_copy = *(from), *name = &name##_copy
/* Calls that name several pieces of memory (plain.h). */
#define HAS_SEGMENTS 1
#define PART_STEP(size) (size)

/* `size` must be a constant where it is used: these are inlined. */
static __always_inline void *ring_reserve(void *ring, __u64 size)
{
	return bpf_ringbuf_reserve(ring, size, 0);
}

static __always_inline void *process_ring_reserve(__u64 size)
{
	return bpf_ringbuf_reserve(&processes, size, 0);
}

static __always_inline void process_ring_submit(void *record)
{
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP);
}

static __always_inline void ring_submit(void *record, __u64 flags)
{
	bpf_ringbuf_submit(record, flags);
}

static __always_inline __u64 ring_query(void *ring, __u64 what)
{
	return bpf_ringbuf_query(ring, what);
}

static __always_inline void ring_discard(void *record)
{
	bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
}

/* KERNEL_READ(destination, pointer, structure, field): destination = pointer->field in kernel memory. */
#define KERNEL_READ(dst, ptr, type, field) BPF_CORE_READ_INTO(&(dst), (struct type *)(ptr), field)
/* inode_of() for a pointer that the verifier knows to be a socket: plain loads, an order cheaper. */
static __always_inline __u64 trusted_inode(struct sock *sock)
{
	__u16 family = sock->__sk_common.skc_family;

	return family == 2 /* AF_INET */ || family == 10 /* AF_INET6 */ ? sock->sk_socket->file->f_inode->i_ino : 0;
}
#define TRUSTED_INODE trusted_inode
#define KERNEL_READ_COMM(dst, task) bpf_probe_read_kernel(dst, 16, __builtin_preserve_access_index(&((struct task_struct *)(task))->comm))

#endif
