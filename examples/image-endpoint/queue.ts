/**
 * A queue with a limit: some work, some wait, the rest are told to come again. A place is left by disposing it, whether its turn has come or
 * not, so `using place = queue.join(signal)` can lose none.
 */

/** Why there is no place: the queue is full, or it is being closed. */
export class QueueError extends Error {}

export interface Limits {
  /** How many work at the same time. */
  running: number;
  /** How many may wait besides. */
  waiting: number;
}

export class Place implements Disposable {
  /** Resolves when it is this one's turn; rejects when the signal is aborted, or the queue closed, before that. */
  readonly turn: Promise<void>;
  start: () => void = () => undefined;
  refuse: (reason: unknown) => void = () => undefined;

  constructor(
    /** How many have to leave before the turn comes. */
    readonly ahead: number,
    private readonly leave: (place: Place) => void,
  ) {
    this.turn = new Promise((resolve, reject) => {
      this.start = resolve;
      this.refuse = reject;
    });
    this.turn.catch(() => undefined); // it may be refused when nobody listens any more
  }

  [Symbol.dispose](): void {
    this.leave(this);
  }
}

export class Queue {
  /** In order of arrival; the first `running` of them work. */
  private readonly places: Place[] = [];
  private closed = false;

  constructor(private readonly limits: Limits) {}

  get running(): number {
    return Math.min(this.places.length, this.limits.running);
  }

  get waiting(): number {
    return this.places.length - this.running;
  }

  /** A place at the end. Throws QueueError when there is none. */
  join(signal: AbortSignal): Place {
    const { running, waiting } = this.limits;
    if (this.closed) throw new QueueError('The server is shutting down.');
    if (this.places.length >= running + waiting) {
      throw new QueueError(`${running + waiting} images are being drawn or waited for; try again in a moment.`);
    }
    const place = new Place(Math.max(0, this.places.length + 1 - running), (left) => this.leave(left));
    this.places.push(place);
    signal.addEventListener('abort', () => place.refuse(signal.reason), { once: true });
    this.advance();
    return place;
  }

  /** Refuses all that wait, and whoever comes from now on; those that work go on. */
  close(): void {
    this.closed = true;
    for (const place of this.places.slice(this.limits.running))
      place.refuse(new QueueError('The server is shutting down.'));
  }

  private leave(place: Place): void {
    const at = this.places.indexOf(place);
    if (at >= 0) this.places.splice(at, 1);
    this.advance();
  }

  private advance(): void {
    for (const place of this.places.slice(0, this.limits.running)) place.start();
  }
}
