-- Prepended to every script: what they share. Not a script of its own.
--
-- A key of the wrong type is garbage from outside; it is deleted and counted, so that one bad key
-- costs what it held and never a call.

local repaired = 0

-- Unix milliseconds of the server: the only clock that expiry is measured with.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Nothing ends later than this, in ms: a week (RECORDS_TTL_MS in keys.py), and a second for clocks
-- of a master and its replica that differ.
local LIFE_MAX = 604800000 + 1000

-- Deletes a key that is not of the expected type. O(1), but for the size of the garbage.
local function heal(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', key)
    repaired = repaired + 1
  end
end

-- Deletes a key whose content is garbage. O(1).
local function discard(key)
  redis.call('UNLINK', key)
  repaired = repaired + 1
end

-- Lets a key live for at least so long; never shortens, because others may count on it. O(1).
local function keep(key, ttl_ms)
  if redis.call('PTTL', key) < ttl_ms then
    redis.call('PEXPIRE', key, ttl_ms)
  end
end

-- Throws out of an index, scored by expiry, what is over, and what ends later than anything may.
-- O(log members) + O(thrown out).
local function sweep(key, now)
  heal(key, 'zset')
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  repaired = repaired + redis.call('ZREMRANGEBYSCORE', key, now + LIFE_MAX, '+inf')
end

-- XADD that survives a stream whose last id was set to the maximum: such a stream takes nothing
-- more and is started anew. O(1).
local function append(key, ...)
  heal(key, 'stream')
  local entry = redis.pcall('XADD', key, ...)
  if type(entry) == 'table' and entry.err then
    redis.call('DEL', key)
    repaired = repaired + 1
    entry = redis.call('XADD', key, ...)
  end
  return entry
end

-- Calls a command with a long list of arguments in pieces that fit Lua's stack. O(arguments).
local function in_pieces(command, key, arguments)
  for first = 1, #arguments, 4000 do
    redis.call(command, key, unpack(arguments, first, math.min(first + 3999, #arguments)))
  end
end

-- A ledger is a zset of reservations at one worker or link. Its members are
-- "<phase>:<amount>:<reservation id>" with the expiry in ms as score; and, with scores below zero
-- so that no range of times contains them, "#" for the sum of all amounts and "#n" for their
-- number, each as -(value + 1). So a ledger is counted without being read.

-- Sums over this are not exact in a double, and not ours.
local SUM_MAX = 2 ^ 53

-- nil if the member is no reservation; over 15 digits none is (AMOUNT_MAX in keys.py).
local function amount_of(member)
  local digits = string.match(member, '^%l:(%d+):.')
  return digits and #digits <= 15 and tonumber(digits) or nil
end

local function write_sums(key, count, sum)
  redis.call('ZADD', key, -(count + 1), '#n', -(sum + 1), '#')
end

-- Counts a ledger anew and throws out what is no reservation, or would never end. O(reservations).
local function recount(key, now)
  local count, sum = 0, 0
  redis.call('ZREM', key, '#', '#n')
  local found = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for index = 1, #found, 2 do
    local member, until_ms = found[index], tonumber(found[index + 1])
    local amount = amount_of(member)
    if amount and until_ms > now and until_ms < now + LIFE_MAX then
      count = count + 1
      sum = sum + amount
    else
      redis.call('ZREM', key, member)
      repaired = repaired + 1
    end
  end
  return count, sum
end

-- Number and sum of the live reservations in a ledger, expired ones thrown out.
-- O(log reservations), plus O(1) for each that expired; O(reservations) if the sums do not agree
-- with the number of members, because something else wrote there.
local function open_ledger(key, now)
  heal(key, 'zset')
  local size = redis.call('ZCARD', key)
  if size == 0 then
    return 0, 0
  end
  local expired = redis.call('ZRANGEBYSCORE', key, 0, now)
  local stored = redis.call('ZMSCORE', key, '#n', '#')
  local count, sum = -1 - (stored[1] or 0), -1 - (stored[2] or 0)
  local is_sound = size == count + 2 and redis.call('ZCOUNT', key, now + LIFE_MAX, '+inf') == 0
  for _, member in ipairs(expired) do
    redis.call('ZREM', key, member)
    count = count - 1
    sum = sum - (amount_of(member) or 0)
  end
  if is_sound and sum >= 0 and sum < SUM_MAX then
    return count, sum
  end
  return recount(key, now)
end

-- Takes a reservation out of a ledger; whether it was there. O(log reservations).
local function strike(key, member)
  heal(key, 'zset')
  if redis.call('ZREM', key, member) == 0 then
    return false
  end
  redis.call('ZINCRBY', key, 1, '#n')
  redis.call('ZINCRBY', key, amount_of(member), '#')
  return true
end

-- A claim of an idempotency key, or nil. One that would never end is garbage. O(1).
local function read_claim(key)
  heal(key, 'hash')
  if redis.call('EXISTS', key) == 0 then
    return nil
  end
  local found = redis.call('HMGET', key, 'digest', 'owner', 'until')
  local ttl_ms = redis.call('PTTL', key)
  local until_ms = tonumber(found[3])
  -- The key outlives the claim in it, so whatever ends later was not written by us.
  local is_sound = found[1] and ttl_ms >= 0 and (
    not found[2] or (until_ms and until_ms <= now_ms() + ttl_ms + 1000))
  if not is_sound then
    discard(key)
    return nil
  end
  return {digest = found[1], owner = found[2], until_ms = until_ms}
end

-- Version and body of a document; 0 and nil if there is none. O(body).
local function read_document(key, bytes_max)
  heal(key, 'hash')
  local version = redis.call('HGET', key, 'version')
  local size = redis.call('HSTRLEN', key, 'body')
  if not version and size == 0 then
    if redis.call('EXISTS', key) == 1 then
      discard(key)
    end
    return 0, nil
  end
  local is_number = version and string.match(version, '^[1-9]%d*$') and #version <= 15
  if not is_number or size == 0 or size > bytes_max then
    discard(key)
    return 0, nil
  end
  return tonumber(version), redis.call('HGET', key, 'body')
end
