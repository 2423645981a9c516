/** Exports of the execution loop. */
export { lookup } from '../decode/cache'
export { execute } from '../generated/execute'
