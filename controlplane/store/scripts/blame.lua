-- Tells the routers that a worker died while it ran a request.
--
-- KEYS  1 events (stream)
-- ARGV  1 fingerprint of the request  2 worker id  3 incarnation  4 events kept
--       5 ttl of events, ms
-- Returns {keys repaired}.
--
-- Atomic, because the stream must not stay without its expiry. Blaming twice tells twice; routers
-- count worker lives and not blames.
-- Complexity: O(1).

append(KEYS[1], 'MAXLEN', '~', ARGV[4], '*',
  'blamed', ARGV[1], 'worker', ARGV[2], 'incarnation', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {repaired}
