-- Takes bytes from the token bucket that all senders of a link share.
--
-- KEYS  1 bucket (hash: tokens, time in server microseconds)
-- ARGV  1 bytes wanted  2 rate, bytes per second  3 burst, bytes
-- Returns {bytes granted, microseconds to wait, keys repaired}.
--
-- Atomic, because reading and taking must not be parted by another sender. A bucket that is not
-- there is full. It expires after the time an empty one needs to fill, when both are the same.
-- A clock that went back grants nothing for the time between.
-- Complexity: O(1).

heal(KEYS[1], 'hash')

local want = tonumber(ARGV[1])
local rate = tonumber(ARGV[2])
local burst = tonumber(ARGV[3])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]

local state = redis.call('HMGET', KEYS[1], 'tokens', 'time')
local tokens = tonumber(state[1])
local since_us = tonumber(state[2])
if tokens and since_us and tokens == tokens and since_us == since_us then
  tokens = math.min(burst, math.max(0, tokens) + math.max(0, now_us - since_us) * rate / 1000000)
else
  tokens = burst
end

local granted = math.floor(math.min(want, tokens))
tokens = tokens - granted
-- Full precision: rounding what is left at each call would add up to bytes nobody was given.
redis.call('HSET', KEYS[1],
  'tokens', string.format('%.17g', tokens), 'time', string.format('%.0f', now_us))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate * 1000) + 1000)

local wait_s = 0
if granted == 0 and want > 0 then
  wait_s = math.max(0, math.min(want, burst) - tokens) / rate
end
return {granted, math.ceil(wait_s * 1000000), repaired}
