/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * core.h's counterpart for bcc, which compiles the same bodies on the host. The kernel headers it finds there are of some kernel,
 * not of the running one, so no structure of theirs is read: the loader passes offsets that it took from the kernel's BTF, as
 * -DOFFSET_structure_field=N, and the settings that core.h keeps in read-only data, as -D macros.
 */
#ifndef LLMSEC_BCC_H
#define LLMSEC_BCC_H

#include <uapi/linux/ptrace.h>

struct sock;

/* Called from one place each, and bcc has no functions that are not inlined. */
#define GLOBAL_SUBPROGRAM static __always_inline
#define KEY_OF_ARGUMENT(name, from) struct connection_key *name = (from)
/* One piece of memory a call, in steps that the verifier can count: it follows every turn of the loop here. */
#define HAS_SEGMENTS 0
#define PART_STEP(size) TAP_PART_BYTES

#include "event.h"
#include "registers.h"
#include "state.h"

/* The loader makes the rings, of another size; this one is their pattern. */
BPF_RINGBUF_OUTPUT(ring_pattern, 1);
BPF_ARRAY_OF_MAPS(rings, "ring_pattern", TAP_MAX_RINGS);
BPF_RINGBUF_OUTPUT(processes, TAP_PROCESS_RING_BYTES / 4096);
BPF_TABLE("hash", __u32, __u32, targets, TAP_MAX_TARGETS);
BPF_TABLE("hash", struct comm_key, __u32, comms, TAP_MAX_COMMS);
BPF_TABLE("lru_hash", __u64, struct thread, threads, TAP_MAX_THREADS);
BPF_TABLE("lru_hash", struct connection_key, struct call, go_calls, TAP_MAX_THREADS);
BPF_TABLE("lru_hash", struct connection_key, struct connection, connections, TAP_MAX_CONNECTIONS);
BPF_TABLE("percpu_array", __u32, __u64, totals, TAP_TOTALS);
BPF_TABLE("percpu_array", __u32, __u32, turns, 1);

/* bcc rewrites map.lookup() where it is written, so these cannot come from one macro. */
static __always_inline __u32 *targets_lookup(__u32 *key) { return targets.lookup(key); }
static __always_inline void targets_update(__u32 *key, __u32 *value) { targets.update(key, value); }
static __always_inline void targets_delete(__u32 *key) { targets.delete(key); }
static __always_inline __u32 *comms_lookup(struct comm_key *key) { return comms.lookup(key); }
static __always_inline struct thread *threads_lookup(__u64 *key) { return threads.lookup(key); }
static __always_inline void threads_update(__u64 *key, struct thread *value) { threads.update(key, value); }
static __always_inline void threads_delete(__u64 *key) { threads.delete(key); }
static __always_inline struct call *go_calls_lookup(const struct connection_key *key) { return go_calls.lookup((struct connection_key *)key); }
static __always_inline void go_calls_update(struct connection_key *key, struct call *value) { go_calls.update(key, value); }
static __always_inline void go_calls_delete(struct connection_key *key) { go_calls.delete(key); }
static __always_inline struct connection *connections_lookup(const struct connection_key *key) { return connections.lookup((struct connection_key *)key); }
static __always_inline void connections_update(const struct connection_key *key, struct connection *value) { connections.update((struct connection_key *)key, value); }
static __always_inline void connections_delete(const struct connection_key *key) { connections.delete((struct connection_key *)key); }
static __always_inline __u64 *totals_lookup(__u32 *key) { return totals.lookup(key); }
static __always_inline __u32 *turns_lookup(__u32 *key) { return turns.lookup(key); }
static __always_inline void *rings_lookup(__u32 *key) { return rings.lookup((int *)key); }

static __always_inline void *ring_reserve(void *ring, __u64 size) { return bpf_ringbuf_reserve(ring, size, 0); }
static __always_inline void *process_ring_reserve(__u64 size) { return processes.ringbuf_reserve(size); }
static __always_inline void process_ring_submit(void *record) { processes.ringbuf_submit(record, BPF_RB_FORCE_WAKEUP); }
static __always_inline void ring_submit(void *record, __u64 flags) { bpf_ringbuf_submit(record, flags); }
static __always_inline __u64 ring_query(void *ring, __u64 what) { return 0; } /* bcc has no such call: never woken for data */
static __always_inline void ring_discard(void *record) { bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP); }

#define KERNEL_READ(dst, ptr, type, field) KERNEL_READ_AT(dst, ptr, OFFSET_##type##_##field)
#define TRUSTED_INODE(sock) inode_of(sock) /* bcc has no typed pointers */
#define KERNEL_READ_AT(dst, ptr, offset) bpf_probe_read_kernel(&(dst), sizeof(dst), (void *)(ptr) + (offset))
#define KERNEL_READ_COMM(dst, task) bpf_probe_read_kernel(dst, 16, (void *)(task) + OFFSET_task_struct_comm)

#endif
