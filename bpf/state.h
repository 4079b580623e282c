/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What the kernel half remembers between probes. Only the two halves of the tap's own C code see these. */
#ifndef LLMSEC_STATE_H
#define LLMSEC_STATE_H

#define TAP_MAX_TARGETS 16384	  /* processes selected at once */
#define TAP_MAX_COMMS 64	  /* names given by --comm */
#define TAP_MAX_THREADS 16384	  /* threads (or goroutines) inside a TLS call or between its parts */
#define TAP_MAX_CONNECTIONS 65536 /* TLS and plain connections open at once */
#define TAP_MAX_SOCKETS 65536	  /* TCP sockets of observed processes, whatever they carry */
#define TAP_MAX_RINGS 16	  /* processes that decode */
#define TAP_PROCESS_RING_BYTES (1024 * 1024) /* 7,700 processes that start or end before their reader comes */

struct tap_config {
	__u32 only_targets; /* watch the processes in `targets` only; else every one */
	__u32 follow_forks; /* children of a target are targets */
	__u32 watch_all;    /* report every program start, so that user space can look for libraries */
	__u32 own_pid;	    /* never watched, and nor are the next two */
	__u32 helper_pid;
	__u32 listener_pid;
	__u32 select_comm;  /* processes whose name is in `comms` become targets as they start */
	__u32 rings;	    /* how many of `rings` there are */
	__u32 plain;	    /* plain HTTP of sockets, too */
};

struct comm_key {
	char comm[16];
};

/* One TLS call between its entry and its return. */
struct call {
	__u64 connection;
	__u64 buffer;
	__u64 size_out;	   /* SSL_*_ex: where the function writes how many bytes it moved; else 0 */
	__u64 entered_ns;
	__u64 stack;	   /* stack pointer at entry: tells nested calls from those that never returned */
	__u32 direction;
	__u32 touched_socket; /* a socket call happened inside */
};

/* TLS inside TLS (an HTTPS proxy) nests two calls; deeper ones are not seen. */
#define TAP_MAX_NESTED 2

struct thread {
	__u64 depth;
	__u64 received_sock;  /* the socket that this thread last received from outside a TLS call; 0: none */
	__u64 received_inode; /* tells whether that address still holds the same socket */
	__u64 unsent;	      /* connection that wrote to memory: the next socket send of this thread is its own */
	struct call calls[TAP_MAX_NESTED];
};

struct connection_key {
	__u64 connection;
	__u32 pid;
	__u32 reserved;
};

struct socket_facts {
	__u64 inode;
	__u16 family;
	__u16 local_port;
	__u16 remote_port;
	__u16 reserved;
	__u8 local[16];
	__u8 remote[16];
};

struct connection {
	__u64 epoch_ns;
	__u64 offsets[2]; /* by direction */
	__u32 lost;
	__u32 fresh;
	struct socket_facts socket;
	char comm[16]; /* read once, when the connection is first seen */
	__u32 ring;    /* one more than the number of the one where all of its records go; 0: none went yet */
	__u16 ended;   /* its end found no room in that ring */
	__u16 owes;    /* nor did that of an earlier one of this object */
};

enum socket_state {
	SOCKET_LOOKING = 0, /* nothing that came over it says yet what it carries */
	SOCKET_HTTP = 1,
	SOCKET_OTHER = 2, /* TLS, or another protocol: left out from here on */
};

/* A TCP socket of an observed process, by its address in the kernel; `inode` tells it from an earlier one there. */
struct plain_socket {
	__u64 inode;
	__u32 owner;  /* the process that used it first; another one that shares it adds to the same connection */
	__u32 looked; /* calls that were looked at so far */
	__u8 state;
	__u8 is_tunnel;	  /* asked for with CONNECT: TLS may follow */
	__u8 half_closed; /* the process has ended its sending and may go on to read */
	__u8 over;	  /* ended by the peer, with bytes still to read */
	__u8 is_unseen;	  /* counted in TAP_UNSEEN_SOCKETS */
	__u8 reserved[3];
};

/* Attach cookies: what a probed function is. The loader gives them; see llmsec_tap/capture/ebpf/core.py. */
enum tap_cookie {
	TAP_COOKIE_WRITE = 1,	 /* moves bytes out; else in */
	TAP_COOKIE_SIZE_OUT = 2, /* fourth argument points to the number of bytes moved */
};

#endif
