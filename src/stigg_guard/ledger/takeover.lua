-- Takes over a ledger that the version before kept in this Redis, in floats of units and of seconds.
--
-- Its queue is closed for good: in place of its leases stands a text, so its processes take no batch any more. Each
-- customer is taken over in a step of its own. From then on old processes get no hold of that customer, because in the
-- set of the old holds stands a member without an entry; what they held before is held here too for as long as it is
-- held there, and what they still commit is taken over like the rest.

local OLD = {
    entries = KEYS[4], live = KEYS[5], counters = KEYS[6], tallies = KEYS[7], held = KEYS[8], unsent = KEYS[9],
    event = KEYS[10], sending = KEYS[11], uncertain = KEYS[12], dead = KEYS[13],
}

local MARK = 'closed'

local MOVED_AT_ONCE = 500

local function micros(seconds) return math.floor(seconds * 1000000 + 0.5) end

local function quanta(units) return math.floor(units * 1000000 + 0.5) end

local function old_entry(id)
    local packed = redis.call('HGET', OLD.entries, id)
    return packed and cmsgpack.unpack(packed)
end

-- The oldest of what is not held, and whether there is more.
local function old_entries()
    local found = {}
    for _, state in ipairs({'unsent', 'event', 'sending', 'uncertain', 'dead'}) do
        local last = (state == 'unsent' or state == 'event') and MOVED_AT_ONCE or -1
        for _, id in ipairs(redis.call('ZRANGE', OLD[state], 0, last)) do
            local entry = old_entry(id)
            if entry then table.insert(found, {id = id, index = OLD[state], entry = entry}) end
        end
    end
    table.sort(found, function(one, other) return one.entry.number < other.entry.number end)
    local more = #found > MOVED_AT_ONCE
    for i = MOVED_AT_ONCE + 1, #found do found[i] = nil end
    return found, more
end

local function move(old)
    local entry = old.entry
    customer.number = math.max(math.floor(entry.number), customer.number + 1)
    local new = {
        state = entry.state, amount = quanta(entry.amount), is_set = entry.is_set and true or false,
        first_at = micros(entry.used_at), used_at = instant_text(micros(entry.used_at)), period = '/',
        event = entry.event or '', dimensions = '', ends = 0, lasts = 0, batch = entry.batch, reason = entry.reason or '',
        attempts = entry.attempts or 0, ticket = entry.state == 'unsent' and 0 or 1, before = '',
    }
    if new.state == 'uncertain' then
        new.ends, new.lasts = entry.due < math.huge and micros(entry.due) or nil, OLD_LEASE
    end
    local name = string.match(old.id, '^[^/]*/[^/]*')
    new.id = digits(customer.number) .. (entry.event and '~' or '') .. '/' .. name
    loaded.e[new.id] = new
    weigh(new, 1)
    if new.state == 'unsent' and not entry.event then at('k', name).newest = new.id end
    redis.call('ZREM', old.index, old.id)
    redis.call('ZREM', OLD.live, old.id)
    redis.call('HDEL', OLD.entries, old.id)
end

-- Holds here what is held there; the ids of that.
local function mirror_holds()
    local held, was_held = {}, redis.call('HGET', BOOK, 'o')
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', OLD.held, '(-inf', '+inf')) do
        local entry, part = old_entry(id), at('h', id)
        local ends = entry and micros(entry.due) or 0
        if ends < now - EXPIRED_HOLDS_KEPT then
            redis.call('ZREM', OLD.held, id)
            redis.call('HDEL', OLD.entries, id)
        else
            if part then weigh_hold(part, -1) end
            part = part or {id = id, amount = quanta(entry.amount), taken_at = micros(entry.used_at)}
            part.period = part.period or period_of(key_of(part))
            if part.ends ~= ends then part.ends, part.lasts = ends, math.max(0, ends - now) end
            loaded.h[id] = part
            weigh_hold(part, 1)
            held[id] = true
        end
    end
    for id in pairs(was_held and cmsgpack.unpack(was_held) or {}) do
        local part = not held[id] and at('h', id)
        if part then
            weigh_hold(part, -1)
            part.gone = true
        end
    end
    if next(held) then redis.call('HSET', BOOK, 'o', cmsgpack.pack(held)) else redis.call('HDEL', BOOK, 'o') end
    return next(held) ~= nil
end

-- token or nothing, until when reports that are under way there are waited for, the customer's token in the old queue
-- or nothing; what comes next: 'queue' it here first, 'wait', 'again', or 'done' unless something is 'held' there
function steps.take_over()
    local token, seen = tonumber(ARGV[2]), tonumber(ARGV[4])
    redis.call('ZADD', OLD.held, '-inf', MARK)
    redis.call('EXPIRE', OLD.held, 86400)
    if redis.call('ZCARD', OLD.sending) > 0 and now < tonumber(ARGV[3]) then return 'wait' end
    if not token and redis.call('HLEN', OLD.entries) > 0 then return 'queue' end
    read({'c'})
    if customer and token and token <= customer.void then return customer.void end
    local old_ticket = tonumber(redis.call('HGET', OLD.counters, 'ticket') or 0)
    customer = customer or {number = 0, void = 0, ticket = old_ticket, horizon = 0, is_coming = true}
    local found, more = old_entries()
    for _, old in ipairs(found) do move(old) end
    local is_held = mirror_holds()
    customer.is_coming = customer.is_coming and more
    write()
    if more then return 'again' end
    redis.call('DEL', OLD.tallies)
    if is_held then return 'held' end
    if seen and seen > tonumber(redis.call('HGET', OLD.counters, 'void') or 0) then
        redis.call('HSET', OLD.counters, 'void', ARGV[4])
    end
    return 'done'
end

-- Closes the old queue; when that was, and the batches that are still to be adopted.
-- KEYS: the queue's, the old leases, what is kept of them, both counts of late commits
function steps.close_old()
    local leases, kept, late, old_late = KEYS[9], KEYS[10], KEYS[11], KEYS[12]
    local kind = redis.call('TYPE', leases).ok
    if kind ~= 'string' then
        local found = kind == 'zset' and redis.call('ZRANGE', leases, 0, -1, 'WITHSCORES') or {}
        for i = 1, #found, 2 do redis.call('ZADD', kept, found[i + 1], found[i]) end
        redis.call('SET', leases, digits(now))
    end
    local counted_late = redis.call('GET', old_late)
    if counted_late then
        redis.call('INCRBY', late, counted_late)
        redis.call('DEL', old_late)
    end
    return {redis.call('GET', leases), redis.call('ZRANGE', kept, 0, -1)}
end

-- batch
-- KEYS: the queue's, the batch here and there, what is kept of the old leases
function steps.adopt()
    local old_batch, kept, ends = KEYS[10], KEYS[11], redis.call('ZSCORE', KEYS[11], ARGV[2])
    if not ends then return end
    for _, customer in ipairs(redis.call('SMEMBERS', old_batch)) do redis.call('HSET', BATCH, customer, '') end
    lease(ARGV[2], OLD_LEASE, '')
    redis.call('ZADD', LEASES, micros(tonumber(ends)), ARGV[2])
    redis.call('DEL', old_batch)
    redis.call('ZREM', kept, ARGV[2])
end

-- {customer, token}...
-- KEYS: those of the old queue
function steps.forget_old()
    for i = 2, #ARGV, 2 do
        if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i]) or 0) == tonumber(ARGV[i + 1]) then
            for _, queue in ipairs(KEYS) do redis.call('ZREM', queue, ARGV[i]) end
        end
    end
end
