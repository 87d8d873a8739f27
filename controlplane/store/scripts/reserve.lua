-- Claims capacity at a prefill worker, a decode worker and, if KV travels, a link: all or nothing.
--
-- KEYS  1 prefill worker (hash)  2 decode worker (hash)
--       3 ledger of the prefill worker (zset)  4 ledger of the decode worker (zset)
--       and for a link  5 index of links (zset)  6 ledger of the link (zset)
-- ARGV  1 prefill incarnation  2 decode incarnation
--       3 ttl at the prefill worker and the link, ms  4 ttl at the decode worker, ms
--       5 requests the prefill worker takes  6 requests the decode worker takes
--       7 prefill member  8 decode member  9 link member  10 link id  11 links listed
-- Returns {"" or the reason of refusal, tokens and requests reserved at the prefill worker,
--          requests reserved at the decode worker, bytes reserved on the link, keys repaired}.
--
-- Atomic, because counting and claiming must not be parted by another router's claim. The
-- reservation's own earlier members are taken out first, so that a retry is not counted twice,
-- keeps its place in a full worker, and a refusal leaves nothing behind.
-- Complexity: O(log reservations), plus O(1) for each reservation that expired meanwhile.

heal(KEYS[1], 'hash')
heal(KEYS[2], 'hash')

local now = now_ms()
local prefill_ttl_ms, decode_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4])

-- Number and sum of what others have reserved, and whether this reservation was there already.
local function others(key, own)
  local count, sum = open_ledger(key, now)
  if count > 0 and redis.call('ZREM', key, own) == 1 then
    return count - 1, sum - amount_of(own), true
  end
  return count, sum, false
end

local prefill_count, prefill_tokens, is_at_prefill = others(KEYS[3], ARGV[7])
local decode_count, decode_sum, is_at_decode = others(KEYS[4], ARGV[8])
local link_count, link_bytes = 0, 0
if KEYS[6] then
  link_count, link_bytes = others(KEYS[6], ARGV[9])
end

local refused_by = ''
if redis.call('HGET', KEYS[1], 'incarnation') ~= ARGV[1] then
  refused_by = 'prefill_gone'
elseif redis.call('HGET', KEYS[2], 'incarnation') ~= ARGV[2] then
  refused_by = 'decode_gone'
elseif not is_at_prefill and prefill_count >= tonumber(ARGV[5]) then
  refused_by = 'prefill_full'
elseif not is_at_decode and decode_count >= tonumber(ARGV[6]) then
  refused_by = 'decode_full'
end

-- Writes a ledger back, with this reservation in it if it was granted; its number and sum.
local function close_ledger(key, count, sum, own, ttl_ms)
  if refused_by == '' then
    redis.call('ZADD', key, now + ttl_ms, own)
    keep(key, ttl_ms)
    count = count + 1
    sum = sum + amount_of(own)
  end
  if count > 0 then
    write_sums(key, count, sum)
  else
    redis.call('DEL', key)
  end
  return count, sum
end

prefill_count, prefill_tokens = close_ledger(
  KEYS[3], prefill_count, prefill_tokens, ARGV[7], prefill_ttl_ms)
decode_count = close_ledger(KEYS[4], decode_count, decode_sum, ARGV[8], decode_ttl_ms)
if KEYS[6] then
  link_count, link_bytes = close_ledger(KEYS[6], link_count, link_bytes, ARGV[9], prefill_ttl_ms)
  if refused_by == '' then
    sweep(KEYS[5], now)
    redis.call('ZADD', KEYS[5], 'GT', now + prefill_ttl_ms, ARGV[10])
    redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -1 - tonumber(ARGV[11]))
    keep(KEYS[5], prefill_ttl_ms)
  end
end
return {refused_by, prefill_tokens, prefill_count, decode_count, link_bytes, repaired}
