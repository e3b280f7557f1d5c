/*
 * A model of the takeover in takeover.go, for spin (https://spinroot.com), which
 * tries every order of steps, deaths and signals of one server and two
 * successors. `make model` runs it, and then again with what was wrong before,
 * which spin has to reject:
 *   -DPER_SOCKET  every socket changed hands by itself;
 *   -DREMOVES     a listener that was closed during a handover removed the files of its successor;
 *   -DEMFILE_ENDS a server that once lacked a descriptor never handed over again;
 *   -DKEEPS       a listener kept its copies of the sockets after it had handed them over.
 * -DGIVES_UP adds successors that do not wait for ever, because of ctx or of
 * takeoverPatience. With -DSTAYS no process ends: then every successor must get
 * the sockets. A server that is stopped is one that takes no step for a
 * while: every order of steps contains that.
 *
 * What must hold in every reachable state:
 *   - no two processes serve one socket;
 *   - while the process in charge lives, a process serves each socket, except during
 *     the step that passes it on: from Yield to Claimed, or back to Serving;
 *   - the socket of the process that serves has its file.
 * And in the end, when nothing can move any more: no process that lives has
 * descriptors of a socket that no process serves; none waits for another for ever.
 *
 * The states are those of State in takeover.go, and the words those of its
 * protocol. Each step names the function of package sock. Two programs take these
 * steps: the server's loop and, in package uds, the keeper's goroutine. Who
 * changes one of them changes the model.
 */

#define SERVERS 3 /* process 0 is the server that runs, 1 and 2 want to succeed it */
#define NONE    9

mtype = { offer, claim, yield, commit, refuse, done }
mtype = { Claiming, Claimed, Serving, Offering, Yielding, Yielded, Released }

/* The connection of a successor, by its number, to the process that accepts it.
 * What was sent before an end closed can still be received. */
chan toSucc[SERVERS] = [3] of { mtype };
chan toServer[SERVERS] = [3] of { mtype };
bool succClosed[SERVERS], serverClosed[SERVERS];

mtype state[SERVERS];
bool alive[SERVERS];
bool serves[SERVERS];   /* it accepts and receives */
bool has[SERVERS];      /* it has descriptors of sockets, locks and control socket */
bool waits[SERVERS];    /* it has connected to the control socket, and is not accepted */
byte charge = 0;        /* who is to serve: the old server until "commit" */
bool ended[SERVERS];    /* it was told to end, and has */
bool file = true;       /* the sockets' files are there */

#ifndef PER_SOCKET

/* Descriptors in a message that no process has received are open, too. */
#define held (has[0] || has[1] || has[2] || len(toSucc[1]) > 0 && !succClosed[1] || len(toSucc[2]) > 0 && !succClosed[2])
#define none_serves (!serves[0] && !serves[1] && !serves[2])

#ifdef STAYS
#define mortal false
#else
#define mortal true
#endif

/* The kernel, when a process is killed: everything that it has is closed. Files
 * stay. */
inline die(me) {
	atomic {
		mortal; alive[me] = false; serves[me] = false; has[me] = false; waits[me] = false;
		succClosed[me] = true;
		if :: customer != NONE -> serverClosed[customer] = true :: else fi;
		goto gone
	}
}

/* Handover.Close of sockets that are pending: they are given back. */
inline giveBack(me) {
	atomic { has[me] = false; succClosed[me] = true; waits[me] = false; ended[me] = true; alive[me] = false; goto gone }
}

/* Handover.Leave, then Socket.Close and Handover.Close */
inline leave(me) {
	if
	:: state[me] == Yielded -> /* the files are the successor's */
#ifdef REMOVES
		file = false;
#endif
		serverClosed[customer] = true
	:: state[me] == Offering || state[me] == Yielding -> toSucc[customer]!refuse; serverClosed[customer] = true; file = false
	:: state[me] == Serving -> file = false
	fi;
	serves[me] = false; has[me] = false; ended[me] = true; alive[me] = false; goto gone
}

proctype Server(byte me) {
	byte customer = NONE; /* the successor that has copies: one at a time */
	bool told = false, deaf = false;

	alive[me] = true;
	if
	:: me == 0 -> goto serve
	:: else
	fi;

	/* Handover.ask: connect, receiveOffer */
	if
	:: atomic { held && !ended[charge] -> waits[me] = true }
	:: atomic { else -> goto gone } /* errNoOffer: a usual start */
	fi;
	do
	:: atomic { toSucc[me]?offer -> has[me] = true; state[me] = Claiming; break }
	:: atomic { toSucc[me]?refuse -> succClosed[me] = true; goto gone }
	:: atomic { len(toSucc[me]) == 0 && (serverClosed[me] || waits[me] && !held) -> waits[me] = false; succClosed[me] = true; goto gone }
#ifdef GIVES_UP
	:: giveBack(me) /* Wait: ctx has ended, or takeoverPatience */
#endif
	:: die(me)
	od;

	/* Handover.verify may fail; or the successor is told to end: Handover.Close */
	if
	:: skip
	:: giveBack(me)
	:: die(me)
	fi;

	/* Handover.Claim */
	atomic { if :: !serverClosed[me] -> toServer[me]!claim :: else fi };
	do
	/* Handover.claimed */
	:: atomic { toSucc[me]?yield -> break }
	:: atomic { toSucc[me]?refuse -> giveBack(me) }
	:: atomic { len(toSucc[me]) == 0 && serverClosed[me] -> break } /* the server is gone without a refuse */
	/* Handover.Close: SIGTERM, or ctx of the library's Listen */
	:: atomic { !serverClosed[me] -> giveBack(me) }
	:: die(me)
	od;
	state[me] = Claimed;
	if
	:: skip
	:: die(me)
	:: giveBack(me) /* adopt failed */
	fi;
	serves[me] = true; /* all of them */
	if
	:: skip
	:: die(me)
	fi;
	/* Handover.Commit */
	atomic {
		charge = me;
		if :: !serverClosed[me] -> toServer[me]!commit :: else fi;
		succClosed[me] = true
	};

serve:
	atomic { state[me] = Serving; serves[me] = true; has[me] = true };
end_serve:
	do
	/* Handover.offer */
	:: atomic { state[me] == Serving && !told && !deaf && waits[1] -> waits[1] = false; customer = 1; toSucc[1]!offer; state[me] = Offering }
	:: atomic { state[me] == Serving && !told && !deaf && waits[2] -> waits[2] = false; customer = 2; toSucc[2]!offer; state[me] = Offering }
#ifdef EMFILE_ENDS
	/* accept4(2) failed. Today that is no step: it is taken again later. */
	:: atomic { state[me] == Serving && !deaf && (waits[1] || waits[2]) -> deaf = true }
#endif
	/* Handover.next; Listener.pause */
	:: atomic { state[me] == Offering && toServer[customer]?[claim] -> toServer[customer]?claim; state[me] = Yielding }
	/* Handover.Yield, once datagram clients have their replies */
	:: atomic { state[me] == Yielding -> serves[me] = false; state[me] = Yielded; toSucc[customer]!yield }
	/* Handover.next: release; Listener.finish */
	:: atomic { state[me] == Yielded && toServer[customer]?[commit] -> toServer[customer]?commit;
		state[me] = Released; serverClosed[customer] = true; ended[me] = true;
#ifdef KEEPS
		goto released
#else
		has[me] = false; alive[me] = false; goto gone
#endif
		}
	/* Handover.next: the successor has ended; takeBack; Listener.resume */
	:: atomic { customer != NONE && len(toServer[customer]) == 0 && succClosed[customer] ->
		serverClosed[customer] = true; customer = NONE; state[me] = Serving; serves[me] = true }
	/* Handover.Refuse: a socket file was removed, so this successor is late */
	:: atomic { (state[me] == Offering || state[me] == Yielding) -> toSucc[customer]!refuse; serverClosed[customer] = true; customer = NONE; state[me] = Serving }
	/* SIGTERM: it drains. Another server that has asked may still get the sockets. */
	:: atomic { !told && mortal -> told = true }
	:: atomic { told && customer == NONE -> leave(me) }
	/* the end of its drain timeout; Listener.Close at any moment */
	:: atomic { customer != NONE && mortal -> leave(me) }
	:: die(me)
	od;
released:
end_released:
	false; /* it lives for its connections */
gone:
	atomic { alive[me] = false; succClosed[me] = true }
}

#define two_serve (serves[0] + serves[1] + serves[2] > 1)
#define unserved  (none_serves && alive[charge] && state[charge] != Yielded && state[charge] != Released)
#define no_file   (!none_serves && !file)
#define stranded  (none_serves && (alive[0] && has[0] || alive[1] && has[1] || alive[2] && has[2]))

#else

/* The protocol of before: every socket changed hands by itself. Both successors
 * have copies of everything; who says "claim" first of a socket gets it. */
bool serving_of[6]; /* process + 3 * socket */
byte chargeOf[2];

proctype Old() {
	byte socket = 0;
	alive[0] = true; serving_of[0] = true; serving_of[3] = true;
end_old:
	do
	:: atomic { toServer[1]?claim -> serving_of[0 + 3 * socket] = false; toSucc[1]!done; socket++; if :: socket == 2 -> goto gone :: else fi }
	:: atomic { len(toServer[1]) == 0 && succClosed[1] -> goto end_served }
	:: atomic { alive[0] = false; serving_of[0] = false; serving_of[3] = false; goto gone }
	od;
end_served:
	false; /* it serves on what it still has */
gone:
	atomic { alive[0] = socket != 2 && alive[0]; serverClosed[1] = true }
}

proctype Successor() {
	byte socket = 0;
	alive[1] = true;
	do
	:: socket == 2 -> break
	:: else ->
		if
		:: toServer[1]!claim
		:: atomic { alive[1] = false; serving_of[1] = false; serving_of[4] = false; succClosed[1] = true; goto gone }
		fi;
		if
		:: atomic { toSucc[1]?done -> serving_of[1 + 3 * socket] = true; socket++ }
		:: atomic { len(toSucc[1]) == 0 && serverClosed[1] -> serving_of[1 + 3 * socket] = true; socket++ }
		fi
	od;
	atomic { chargeOf[0] = 1; chargeOf[1] = 1 };
end_gone:
gone:
	skip
}

#define nobody_has(socket) (!serving_of[0 + 3 * socket] && !serving_of[1 + 3 * socket] && alive[0] && chargeOf[socket] == 0 && succClosed[1])
#define two_serve (serving_of[0] && serving_of[1] || serving_of[3] && serving_of[4])
#define unserved  (nobody_has(0) || nobody_has(1))
#define no_file   false
#define stranded  false

#endif

active proctype Monitor() {
end_monitor:
	do
	:: atomic { two_serve -> printf("two serve one socket\n"); assert(false) }
	:: atomic { unserved -> printf("nobody serves, and the process in charge lives\n"); assert(false) }
	:: atomic { no_file -> printf("the socket that is served has no file\n"); assert(false) }
	:: atomic { timeout -> assert(!stranded); break }
	od
}

init {
	atomic {
#ifdef PER_SOCKET
		run Old(); run Successor()
#else
		alive[0] = true; serves[0] = true; has[0] = true; state[0] = Serving;
		run Server(0); run Server(1); run Server(2)
#endif
	}
}
