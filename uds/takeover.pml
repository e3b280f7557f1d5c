/*
 * A model of the takeover in takeover.go, for spin (https://spinroot.com), which
 * tries every order of steps, deaths and signals of one server and two
 * successors. `make model` runs it, and then the same with -DPER_SOCKET, the
 * protocol of before, which spin has to reject.
 *
 * What must hold in every reachable state:
 *   - no two processes serve one socket;
 *   - while the process in charge lives, somebody serves each socket, but for the
 *     step that passes it on: from Yield to Claimed, or TakeBack.
 * And in the end, when nothing can move any more: no process that lives has
 * descriptors of a socket that nobody serves; none waits for another for ever.
 *
 * Each step names the Go function that it stands for, in uds or
 * internal/echo. Who changes one changes the other.
 */

#define SERVERS 3 /* process 0 is the server that runs, 1 and 2 want to succeed it */
#define NONE    9

mtype = { hello, mine, yours, serving, no, done }

/* The connection of a successor, by its number, to the process that accepts it.
 * What was sent before an end closed can still be received. */
chan toSucc[SERVERS] = [3] of { mtype };
chan toServer[SERVERS] = [3] of { mtype };
bool succClosed[SERVERS], serverClosed[SERVERS];

bool alive[SERVERS];
bool serves[SERVERS];   /* it accepts and receives */
bool has[SERVERS];      /* it has descriptors of sockets, locks and control socket */
bool owns[SERVERS];     /* it has yielded to a successor that has not said "serving" */
bool waits[SERVERS];    /* it has connected to the control socket, and is not accepted */
byte charge = 0;        /* who is to serve: the old server until "serving" */
bool ended[SERVERS];    /* it was told to end, and has */

#ifndef PER_SOCKET

/* Descriptors in a message that nobody has received are open, too. */
#define held (has[0] || has[1] || has[2] || len(toSucc[1]) > 0 && !succClosed[1] || len(toSucc[2]) > 0 && !succClosed[2])
#define none_serves (!serves[0] && !serves[1] && !serves[2])

/* The kernel, when a process is killed: everything that it has is closed. */
inline die(me) {
	atomic {
		alive[me] = false; serves[me] = false; has[me] = false; waits[me] = false;
		succClosed[me] = true;
		if :: customer != NONE -> serverClosed[customer] = true :: else fi;
		goto gone
	}
}

/* uds.Handover.Close of sockets that are pending: they are given back. */
inline giveBack(me) {
	atomic { has[me] = false; succClosed[me] = true; waits[me] = false; ended[me] = true; alive[me] = false; goto gone }
}

proctype Server(byte me) {
	byte customer = NONE; /* the successor that has copies: one at a time */
	bool claims = false, told = false;

	alive[me] = true;
	if
	:: me == 0 -> goto serve
	:: else
	fi;

	/* uds.Handover.ask: connect, receiveHello */
	if
	:: atomic { held && !ended[charge] -> waits[me] = true }
	:: atomic { else -> goto gone } /* errNobodyOffers: a usual start */
	fi;
	do
	:: atomic { toSucc[me]?hello -> has[me] = true; break }
	:: atomic { toSucc[me]?no -> succClosed[me] = true; goto gone }
	:: atomic { len(toSucc[me]) == 0 && (serverClosed[me] || waits[me] && !held) -> waits[me] = false; succClosed[me] = true; goto gone }
	:: die(me)
	od;

	/* uds.Handover.verify may fail; so may be told to end: echo.Server.Serve */
	if
	:: skip
	:: giveBack(me)
	:: die(me)
	fi;

	/* uds.Handover.Claim */
	atomic { if :: !serverClosed[me] -> toServer[me]!mine :: else fi };
	do
	/* uds.Handover.Claimed */
	:: atomic { toSucc[me]?yours -> break }
	:: atomic { toSucc[me]?no -> giveBack(me) }
	:: atomic { len(toSucc[me]) == 0 && serverClosed[me] -> break } /* the server is gone without a no */
	/* server.drain, while the sockets are pending */
	:: atomic { !serverClosed[me] -> giveBack(me) }
	:: die(me)
	od;
	if
	:: skip
	:: die(me)
	:: giveBack(me) /* adopt failed */
	fi;
	serves[me] = true; /* server.takeOver: all of them are in the loop */
	if
	:: skip
	:: die(me)
	fi;
	/* uds.Handover.Commit */
	atomic {
		charge = me;
		if :: !serverClosed[me] -> toServer[me]!serving :: else fi;
		succClosed[me] = true
	};

serve:
	serves[me] = true;
	has[me] = true;
end_serve:
	do
	/* control.Ready, uds.Handover.Offer */
	:: atomic { customer == NONE && !told && waits[1] -> waits[1] = false; customer = 1; toSucc[1]!hello }
	:: atomic { customer == NONE && !told && waits[2] -> waits[2] = false; customer = 2; toSucc[2]!hello }
	/* successor.Ready: Claims; datagrams are received no more, replies sent */
	:: atomic { customer != NONE && !claims && !owns[me] && toServer[customer]?[mine] -> toServer[customer]?mine; claims = true }
	/* server.handOver, uds.Offer.Yield */
	:: atomic { customer != NONE && claims && !owns[me] -> serves[me] = false; owns[me] = true; toSucc[customer]!yours }
	/* successor.Ready: Serves; server.handedOver, uds.Handover.Release */
	:: atomic { customer != NONE && owns[me] && toServer[customer]?[serving] -> toServer[customer]?serving;
		has[me] = false; owns[me] = false; serverClosed[customer] = true; ended[me] = true; alive[me] = false; goto gone }
	/* successor.Ready: Gone; server.takeBack, uds.Handover.TakeBack */
	:: atomic { customer != NONE && len(toServer[customer]) == 0 && succClosed[customer] ->
		serverClosed[customer] = true; customer = NONE; claims = false; owns[me] = false; serves[me] = true }
	/* renew.go, refuseSuccessor: a socket file was removed, so this one is late */
	:: atomic { customer != NONE && !claims -> toSucc[customer]!no; serverClosed[customer] = true; customer = NONE }
	/* SIGTERM; server.drain */
	:: atomic { !told -> told = true }
	:: atomic { told && customer == NONE -> serves[me] = false; has[me] = false; ended[me] = true; alive[me] = false; goto gone }
	/* the drain timeout; server.close */
	:: atomic { told && customer != NONE ->
		if
		:: owns[me] -> owns[me] = false
		:: else -> toSucc[customer]!no
		fi;
		serves[me] = false; has[me] = false; serverClosed[customer] = true; ended[me] = true; alive[me] = false; goto gone }
	:: die(me)
	od;
gone:
	atomic { alive[me] = false; succClosed[me] = true }
}

#define two_serve (serves[0] + serves[1] + serves[2] > 1)
#define unserved  (none_serves && alive[charge] && !owns[charge])
#define stranded  (none_serves && (alive[0] && has[0] || alive[1] && has[1] || alive[2] && has[2]))

#else

/* The protocol of before: every socket changed hands by itself. Both successors
 * have copies of everything; who says "mine" first of a socket gets it. */
bool serving_of[6]; /* process + 3 * socket */
byte chargeOf[2];

proctype Old() {
	byte socket = 0;
	alive[0] = true; serving_of[0] = true; serving_of[3] = true;
end_old:
	do
	:: atomic { toServer[1]?mine -> serving_of[0 + 3 * socket] = false; toSucc[1]!done; socket++; if :: socket == 2 -> goto gone :: else fi }
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
		:: toServer[1]!mine
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
#define stranded  false

#endif

active proctype Monitor() {
end_monitor:
	do
	:: atomic { two_serve -> printf("two serve one socket\n"); assert(false) }
	:: atomic { unserved -> printf("nobody serves, and the process in charge lives\n"); assert(false) }
	:: atomic { timeout -> assert(!stranded); break }
	od
}

init {
	atomic {
#ifdef PER_SOCKET
		run Old(); run Successor()
#else
		alive[0] = true; serves[0] = true; has[0] = true;
		run Server(0); run Server(1); run Server(2)
#endif
	}
}
