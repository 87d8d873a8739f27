-- Registers or refreshes a worker, applies its inventory delta and tells the routers.
--
-- KEYS  1 worker (hash)  2 its inventory (hash)  3 its ledger (zset)
--       4 index of workers (zset)  5 events (stream)
-- ARGV  1 worker id  2 incarnation  3 sequence  4 ttl, ms  5 "1" if the inventory is full
--       6 beat without inventory, JSON  7 inventory, JSON  8 events kept  9 ttl of events, ms
--       10 blocks an inventory may have  11 workers a fleet may have
-- Returns {1 if a full inventory is wanted or -1 if there is no room for the worker,
--          1 if the inventory was cut to the newest part, keys repaired}.
--
-- Atomic, because "does this delta follow the last one" and applying it must not be parted by
-- another beat. The field "@" of the inventory holds the incarnation it is complete for; it
-- goes when a delta was missed or the key was lost, and only a full report brings it back.
-- An event carries its inventory only if it was applied here, so routers and store agree.
-- An inventory that grew too large begins anew with this delta, which is the newest part, and the
-- event says so: it is full.
-- Complexity: O(delta) + O(log workers).

heal(KEYS[1], 'hash')
heal(KEYS[2], 'hash')

local ttl_ms = tonumber(ARGV[4])
local sequence = tonumber(ARGV[3])
local is_full = ARGV[5] == '1'
local known = redis.call('HMGET', KEYS[1], 'incarnation', 'sequence')
local last = known[2] and string.match(known[2], '^%d+$') and tonumber(known[2]) or nil
if known[1] and (not last or last > 2 ^ 53 or redis.call('PTTL', KEYS[1]) < 0) then
  -- No beat could ever follow such a one.
  discard(KEYS[1])
  known, last = {}, nil
end
local is_same = known[1] == ARGV[2] and last ~= nil
local is_complete = redis.call('HGET', KEYS[2], '@') == ARGV[2]

if is_same and sequence <= last then
  return {is_complete and 0 or 1, 0, repaired}
end
local now = now_ms()
-- Only reads before the first HSET: a script that has written is not refused for memory any more.
heal(KEYS[4], 'zset')
local listed_ms = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1])) or 0
local others = redis.call('ZCOUNT', KEYS[4], '(' .. string.format('%.0f', now), now + LIFE_MAX)
if listed_ms <= now and others >= tonumber(ARGV[11]) then
  return {-1, 0, repaired}
end
if not is_same then
  redis.call('UNLINK', KEYS[2])
  if known[1] and known[1] ~= ARGV[2] then
    redis.call('DEL', KEYS[3])
  end
end

local inventory, is_cut = ARGV[7], 0
local is_applied = is_full or (is_same and sequence == last + 1 and is_complete)
if is_applied then
  local delta = cjson.decode(ARGV[7])
  if is_full then
    redis.call('UNLINK', KEYS[2])
  end
  in_pieces('HDEL', KEYS[2], delta.removed or {})
  local fields = {'@', ARGV[2]}
  local length = 2
  for block, what in pairs(delta.stored or {}) do
    fields[length + 1], fields[length + 2] = block, what
    length = length + 2
  end
  in_pieces('HSET', KEYS[2], fields)
  if redis.call('HLEN', KEYS[2]) - 1 > tonumber(ARGV[10]) then
    redis.call('UNLINK', KEYS[2])
    in_pieces('HSET', KEYS[2], fields)
    inventory, is_cut = '{"is_full":true,"stored":' .. cjson.encode(delta.stored) .. '}', 1
  end
else
  redis.call('HDEL', KEYS[2], '@')
end
redis.call('PEXPIRE', KEYS[2], ttl_ms)

redis.call('HSET', KEYS[1], 'incarnation', ARGV[2], 'sequence', ARGV[3], 'beat', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ttl_ms)
sweep(KEYS[4], now)
redis.call('ZADD', KEYS[4], now + ttl_ms, ARGV[1])
keep(KEYS[4], ttl_ms)

if is_applied then
  append(KEYS[5], 'MAXLEN', '~', ARGV[8], '*', 'beat', ARGV[6], 'inventory', inventory)
else
  append(KEYS[5], 'MAXLEN', '~', ARGV[8], '*', 'beat', ARGV[6])
end
redis.call('PEXPIRE', KEYS[5], ARGV[9])
return {is_applied and 0 or 1, is_cut, repaired}
