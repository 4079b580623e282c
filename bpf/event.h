/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The one record that both sides share. llmsec_tap/capture/ebpf/events.py decodes it with one struct.Struct; a test compares sizes. */
#ifndef LLMSEC_EVENT_H
#define LLMSEC_EVENT_H

/* The first byte of every record. Raise it with any change of layout or meaning. */
#define TAP_EVENT_VERSION 1

enum tap_event_type {
	TAP_DATA = 1,  /* plaintext of one call, or one part of it */
	TAP_BIND = 2,  /* the socket of a connection whose first data went out without it */
	TAP_CLOSE = 3, /* the connection ended; payload: final offsets of both directions, 2 x u64 */
	TAP_EXEC = 4,  /* the process runs another program now */
	TAP_FORK = 5,  /* `other` is the child's process id */
	TAP_EXIT = 6,  /* the last thread ended */
	TAP_MAP = 7,   /* the dynamic loader has mapped or unmapped a library */
};

enum tap_direction {
	TAP_READ = 0,  /* the process received it */
	TAP_WRITE = 1, /* the process sent it */
};

enum tap_event_flag {
	TAP_CUT = 1,	    /* the call was longer than TAP_MAX_CALL_BYTES; the rest is missing */
	TAP_UNREADABLE = 2, /* the bytes could not be read; `length` is 0 and `call_length` are missing */
	TAP_FRESH = 4,	    /* seen from its beginning, so its first byte is the first of the stream */
};

/* One call's bytes are sent whole in parts of at most this. */
#define TAP_PART_BYTES 65536
#define TAP_MAX_PARTS 128
#define TAP_MAX_CALL_BYTES (TAP_PART_BYTES * TAP_MAX_PARTS)

/* No address of a process has this bit, so that a socket is never taken for a TLS object. */
#define TAP_PLAIN_SOCKET (1ULL << 63)

/* All integers in the host's byte order; addresses as on the wire, IPv4 in the first four bytes. */
struct tap_event {
	__u8 version;
	__u8 type;
	__u8 direction;
	__u8 flags;
	__u32 length;	   /* payload bytes after this header; the record may be longer (size classes) */
	__u64 ts_ns;	   /* CLOCK_BOOTTIME: entry of a write, return of a read */
	__u64 connection;  /* SSL *, GnuTLS session, Go's *tls.Conn; plain: TAP_PLAIN_SOCKET and the socket's inode */
	__u64 epoch_ns;	   /* tells connections apart that used the same pointer one after the other */
	__u64 offset;	   /* of the first payload byte in its direction, counted since the epoch began */
	__u64 inode;	   /* of the socket; 0: not known yet */
	__u32 pid;	   /* process (thread group) */
	__u32 tid;
	__u32 lost;	   /* records of this connection that found no room, so far */
	__u32 call_length; /* of the whole call */
	__u32 other;	   /* TAP_FORK: the child */
	__u16 family;	   /* AF_INET, AF_INET6, or 0: not known yet */
	__u16 local_port;
	__u16 remote_port;
	__u16 reserved[3];
	__u8 local[16];
	__u8 remote[16];
	char comm[16];	   /* of the thread's process */
};

_Static_assert(sizeof(struct tap_event) == 128, "events.py decodes 128 bytes");
_Static_assert(__builtin_offsetof(struct tap_event, inode) == 40, "no hidden padding before inode");
_Static_assert(__builtin_offsetof(struct tap_event, family) == 68, "no hidden padding before family");
_Static_assert(__builtin_offsetof(struct tap_event, local) == 80, "no hidden padding before local");

/* Totals per CPU, by index in the map `totals`. */
enum tap_total {
	TAP_CALLS = 0,	       /* calls that moved bytes */
	TAP_BYTES = 1,
	TAP_LOST_RECORDS = 2,  /* the ring was full */
	TAP_LOST_BYTES = 3,
	TAP_LOST_CALLS = 4,    /* calls of which any part was lost */
	TAP_UNREADABLE_CALLS = 5,
	TAP_CUT_CALLS = 6,
	TAP_LOST_PROCESSES = 7, /* starts, forks, ends and loads that the attaching side was not told of */
	TAP_PLAIN_CALLS = 8,    /* of TAP_CALLS, those over a socket without TLS */
	TAP_PLAIN_BYTES = 9,
	TAP_UNSEEN_SOCKETS = 10, /* began by io_uring, sendfile or another way that leaves nothing to read, so what they carry is not known */
	TAP_TOTALS = 11,
};

#endif
