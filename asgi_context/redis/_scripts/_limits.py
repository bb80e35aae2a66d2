"""Scripts of counters and leases. The key of one is the first, and that of their index the second."""

from typing import Final

from asgi_context.redis._scripts._script import HEAD, Script

COUNT: Final = Script(
    HEAD
    + """
local left = redis.call('PTTL', KEYS[1])
if left < 0 or not redis.call('ZSCORE', KEYS[2], ARGV[2]) then
  local now = clock()
  local ends = now + (left < 0 and tonumber(ARGV[4]) or left)
  local until_ = unregistered(KEYS[2], now, ends, ARGV[1])
  if until_ then return until_ end
  if left < 0 then redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4]) end
  redis.call('ZADD', KEYS[2], text(ends), ARGV[2])
  purge(KEYS[2], now)
  if left < 0 then return {ARGV[3], tonumber(ARGV[4])} end
end
redis.call('INCRBY', KEYS[1], ARGV[3])
return {redis.call('GET', KEYS[1]), left}
"""
)

ACQUIRE: Final = Script(
    HEAD
    + """
local now = clock()
local ends = now + tonumber(ARGV[5])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
last = math.max(ends, last and moment(last) or 0)
local held = redis.call('ZSCORE', KEYS[1], ARGV[3])
if not (held and moment(held) > now) then
  if redis.call('ZCOUNT', KEYS[1], '(' .. text(now), '+inf') >= tonumber(ARGV[4]) then return 0 end
end
local until_ = unregistered(KEYS[2], now, last, ARGV[1])
if until_ then return until_ end
redis.call('ZADD', KEYS[1], text(ends), ARGV[3])
purge(KEYS[1], now)
last = moment(redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
redis.call('PEXPIREAT', KEYS[1], text(last))
purge(KEYS[2], now)
redis.call('ZADD', KEYS[2], text(last), ARGV[2])
return 1
"""
)

RELEASE: Final = Script(
    HEAD
    + """
local held = redis.call('ZSCORE', KEYS[1], ARGV[2])
if not held then return 0 end
redis.call('ZREM', KEYS[1], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('ZREM', KEYS[2], ARGV[1]) end
return moment(held) > clock() and 1 or 0
"""
)
