/** Time as the person at the console sees it: waiting, and holding virtual time back to the wall clock's pace. */

/** Lets the event loop work, at least so long. */
export const pause = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => {
    if (milliseconds === 0 && typeof setImmediate === 'function') setImmediate(resolve)
    else setTimeout(resolve, milliseconds)
  })

/** Nanoseconds of virtual time between two looks at the wall clock, when the machine is paced. */
export const PACE = 20e6

/** How far virtual time is ahead of the wall clock. A guest that fell behind does not catch up. */
export class Pacer {
  #wall = performance.now()
  #virtual = -1

  ahead(now: number): number {
    if (this.#virtual < 0) this.#virtual = now
    const ahead = (now - this.#virtual) / 1e6 - (performance.now() - this.#wall)
    if (ahead < -100) {
      this.#wall = performance.now()
      this.#virtual = now
    }
    return Math.min(ahead, 100)
  }
}
