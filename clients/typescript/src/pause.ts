// Pauses between tries.

/** Growing pauses with full jitter, so that many clients do not come back in step. Milliseconds. */
export class Backoff {
    #next: number;

    constructor(
        private readonly first: number,
        private readonly most: number,
    ) {
        this.#next = first;
    }

    /** The next pause: what the server asks for, plus the jitter. */
    pause(asked = 0): number {
        const pause = asked + this.#next * Math.random();
        this.#next = Math.min(this.#next * 2, this.most);
        return pause;
    }

    /** Begins anew, after a success. */
    reset(): void {
        this.#next = this.first;
    }
}

/** Waits. Throws the reason of the signal if that is aborted first. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
        signal?.throwIfAborted();
        const stop = () => {
            clearTimeout(timer);
            reject(signal?.reason);
        };
        const timer = setTimeout(() => {
            signal?.removeEventListener("abort", stop);
            resolve();
        }, ms);
        signal?.addEventListener("abort", stop, { once: true });
    });
}
