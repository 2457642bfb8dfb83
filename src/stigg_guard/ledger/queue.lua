-- The steps on the queue: which customers have something to send or to decide, and which batches are under way.
--
-- `customers` has all that may have entries or holds, by the token of the step that queued them last; `unsent` and
-- `event` those that may have something to send, by the first token; `uncertain` those with something to decide, and
-- `later` those with something that waits, with its kind before the name, both by the time when it is due. `leases` has
-- the ends of the batches under way, `batches` how long each lease is and the number of the batch's oldest report, and
-- `clock` the latest time at which an end was set.

local CUSTOMERS, LATER, LEASES, BATCHES, CLOCK = KEYS[1], KEYS[5], KEYS[6], KEYS[7], KEYS[8]

local QUEUES = {unsent = KEYS[2], event = KEYS[3], uncertain = KEYS[4]}

-- The customers of the batch, each with the number of its oldest report.
local BATCH = KEYS[9]

local function is_set_back() return now < tonumber(redis.call('GET', CLOCK) or 0) end

local function note_time()
    if tonumber(redis.call('GET', CLOCK) or 0) < now then redis.call('SET', CLOCK, digits(now)) end
end

local function lease_of(batch)
    local lasts, order = string.match(redis.call('HGET', BATCHES, batch) or '0 ', '^(%d+) (%d*)$')
    return tonumber(lasts), order
end

local function lease(batch, lasts, order)
    note_time()
    redis.call('ZADD', LEASES, now + lasts, batch)
    redis.call('HSET', BATCHES, batch, string.format('%.0f %s', lasts, order))
end

local function with_tokens(names)
    local answer = {}
    for _, customer in ipairs(names) do
        table.insert(answer, customer)
        table.insert(answer, redis.call('ZSCORE', CUSTOMERS, customer) or '0')
    end
    return answer
end

-- Queues those again whose wait is over.
local function wake()
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', LATER, '-inf', now, 'LIMIT', 0, 1000)) do
        local kind, customer = string.match(member, '^(%w+)/(.*)$')
        redis.call('ZADD', QUEUES[kind], 'LT', redis.call('ZSCORE', CUSTOMERS, customer) or 0, customer)
        redis.call('ZREM', LATER, member)
    end
end

-- Of the batches whose lease ended, the one with the oldest report.
local function overdue_batch()
    local oldest, oldest_order
    for _, batch in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, 1000)) do
        local _, order = lease_of(batch)
        if not oldest or order < oldest_order then oldest, oldest_order = batch, order end
    end
    return oldest, oldest_order
end

-- lasts, size, name for a new batch
function steps.open()
    if is_set_back() then return 'set back' end
    local lasts, size, new = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
    wake()
    local overdue, order = overdue_batch()
    if overdue then
        lease(overdue, lasts, order)
        return {overdue, now + lasts, '', {}}
    end
    for _, kind in ipairs({'unsent', 'event'}) do
        local found = redis.call('ZRANGE', QUEUES[kind], 0, size - 1)
        if #found > 0 then
            lease(new, lasts, '')
            for _, customer in ipairs(found) do redis.call('HSET', BATCH, customer, '') end
            return {new, now + lasts, kind, with_tokens(found)}
        end
    end
    return false
end

local function any_until(queue) return redis.call('ZCOUNT', queue, '-inf', now) > 0 end

-- whether there may be something for steps.open()
function steps.to_send()
    local queued = redis.call('ZCARD', QUEUES.unsent) + redis.call('ZCARD', QUEUES.event)
    return (queued > 0 or any_until(LATER) or any_until(LEASES) or is_set_back()) and 1 or 0
end

-- whether any customer may have something
function steps.knows_any() return redis.call('EXISTS', CUSTOMERS) end

-- whether there may be something for steps.due()
function steps.to_decide()
    return (any_until(QUEUES.uncertain) or is_set_back()) and 1 or 0
end

-- batch, {customer, number of its oldest report in the batch or nothing}...
function steps.leave()
    for i = 3, #ARGV, 2 do
        if ARGV[i + 1] == '' then
            redis.call('HDEL', BATCH, ARGV[i])
        else
            redis.call('HSET', BATCH, ARGV[i], ARGV[i + 1])
        end
    end
    local lasts, oldest = lease_of(ARGV[2]), nil
    for _, number in ipairs(redis.call('HVALS', BATCH)) do oldest = oldest and earlier(oldest, number) or number end
    if oldest then
        redis.call('HSET', BATCHES, ARGV[2], string.format('%.0f %s', lasts, oldest))
    else
        redis.call('ZREM', LEASES, ARGV[2])
        redis.call('HDEL', BATCHES, ARGV[2])
    end
end

-- batch, lasts
function steps.postpone()
    if redis.call('ZSCORE', LEASES, ARGV[2]) then
        local _, order = lease_of(ARGV[2])
        lease(ARGV[2], tonumber(ARGV[3]), order)
    end
end

-- batch, lasts, customer, number of its report; the end of the lease
function steps.lease()
    local lasts = tonumber(ARGV[3])
    lease(ARGV[2], lasts, ARGV[5])
    redis.call('HSET', BATCH, ARGV[4], ARGV[5])
    return now + lasts
end

-- size
function steps.due()
    if is_set_back() then return 'set back' end
    return with_tokens(redis.call('ZRANGEBYSCORE', QUEUES.uncertain, '-inf', now, 'LIMIT', 0, ARGV[2]))
end

-- kind or nothing, {customer, token, after how long to come back or nothing, size of what is kept}...
function steps.dequeue()
    local kind = ARGV[2]
    note_time()
    for i = 3, #ARGV, 4 do
        local customer, token, wait, kept = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3]
        if tonumber(redis.call('ZSCORE', CUSTOMERS, customer) or 0) == token then
            if kind ~= '' then redis.call('ZREM', QUEUES[kind], customer) end
            if wait and kind == 'uncertain' then redis.call('ZADD', QUEUES.uncertain, now + wait, customer) end
            if wait and kind ~= 'uncertain' then redis.call('ZADD', LATER, now + wait, kind .. '/' .. customer) end
            if kept == '0' then redis.call('ZREM', CUSTOMERS, customer) end
        end
    end
end

function steps.note_time()
    note_time()
end

-- Lets leases that were given before the clock was set back end in their own time, and has all who wait looked at.
function steps.set_back()
    for _, batch in ipairs(redis.call('ZRANGEBYSCORE', LEASES, now, '+inf')) do
        local lasts = lease_of(batch)
        redis.call('ZADD', LEASES, 'LT', now + lasts, batch)
    end
    for _, queue in ipairs({LATER, QUEUES.uncertain}) do
        for _, member in ipairs(redis.call('ZRANGEBYSCORE', queue, now, '+inf')) do
            redis.call('ZADD', queue, 0, member)
        end
    end
    redis.call('SET', CLOCK, digits(now))
end
