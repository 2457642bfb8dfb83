-- The steps by which one customer's usage becomes reports, and reports are settled.

local function in_batch(batch)
    local found = ids('s' .. batch .. ' ', 's' .. batch .. '!')
    return all_at('e', #found > 0 and found or ids('t' .. batch .. ' ', 't' .. batch .. '!'))
end

-- What a step answers that took entries out of batches: how many it changed, and for each batch the number of the
-- oldest report that is left in it here, or nothing.
local function changed(number, batches)
    write()
    local answer = {number}
    for batch in pairs(batches) do
        local found = ids('s' .. batch .. ' ', 's' .. batch .. '!', 1)
        if #found == 0 then found = ids('t' .. batch .. ' ', 't' .. batch .. '!', 1) end
        table.insert(answer, batch)
        table.insert(answer, found[1] and number_of(found[1]) or '')
    end
    return answer
end

-- Changes the entries in these states whose ids begin at this argument, and takes them out of their batches.
local function change(first, states, work)
    read({'c'})
    local again = refusal()
    if again then return again end
    local given, batches, number = {}, {}, 0
    for i = first, #ARGV do given[i - first + 1] = ARGV[i] end
    for _, entry in ipairs(all_at('e', given)) do
        if states[entry.state] and not entry.gone then
            number = number + 1
            if entry.batch then batches[entry.batch] = true end
            entry.batch = nil
            work(entry)
        end
    end
    return changed(number, batches)
end

-- Lets an entry wait to be sent.
local function resume(entry)
    if entry.state == 'dead' then
        entry.state = 'unsent'
        weigh(entry, 1)
    end
    entry.state, entry.attempts = 'unsent', 0
    local key = at('k', name_of(entry.id))
    if not is_event(entry.id) and number_of(key.newest) < number_of(entry.id) then key.newest = entry.id end
end

-- The keys of which no usage may be sent now, because a report of theirs is under way or waits for a decision.
local function blocked_names()
    local blocked = {}
    for _, id in ipairs(ids('s', 't')) do blocked[name_of(id)] = true end
    for _, id in ipairs(ids('w', 'x')) do
        if not is_event(id) then blocked[name_of(id)] = true end
    end
    return blocked
end

-- The oldest usages that may be sent, one of a key; whether there are more, and when the next one of those that wait
-- may be.
local function sendable_usages(room)
    local found, blocked, soonest = {}, blocked_names(), nil
    for _, id in ipairs(ids('u', 'v')) do
        local name = name_of(id)
        if not blocked[name] then
            blocked[name] = true
            local entry = at('e', id)
            if entry.ends > now then
                soonest = math.min(soonest or entry.ends, entry.ends)
            elseif #found == room then
                return found, true
            else
                table.insert(found, entry)
            end
        end
    end
    return found, false, soonest
end

-- The same of events, of which there may be any number.
local function sendable_events(room)
    local found, soonest, first = {}, nil, 'v'
    repeat
        local page = ids(first, 'w', room + 1)
        for _, entry in ipairs(all_at('e', page)) do
            if entry.ends > now then
                soonest = math.min(soonest or entry.ends, entry.ends)
            elseif #found == room then
                return found, true
            else
                table.insert(found, entry)
            end
        end
        first = #page > 0 and 'v' .. page[#page] .. '!'
    until #page <= room
    return found, false, soonest
end

-- The keys with reports under way.
local function sent_names()
    local sent = {}
    for _, range in ipairs({{'s', 'u'}, {'w', 'y'}}) do
        for _, id in ipairs(ids(range[1], range[2])) do sent[name_of(id)] = true end
    end
    return sent
end

local function mark(entries, batch)
    if #entries == 0 then return end
    local ticket, befores, sent = next_ticket(), {}, sent_names()
    for _, entry in ipairs(entries) do
        local key = at('k', name_of(entry.id))
        weigh(entry, -1)
        if key.row and not befores[key] then key.row, befores[key] = taken(key.row, ticket, not sent[key.name]) end
        entry.used_at = sent_at(entry.period, entry.used_at, instant_text(now))
        entry.state, entry.batch, entry.ticket, entry.before = 'sending', batch, ticket, befores[key] or ''
        weigh(entry, 1)
    end
    write()
end

-- token or nothing, batch, end of its lease, room for more, kind; whether there is more and after how long the next
-- comes, the size of what is kept of the customer, and the reports
function steps.take()
    local token, batch, ends, room, kind = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
    local more, soonest = room > 0, nil
    read({'c'})
    -- Once the lease ended, somebody else may have found the batch and be sending it: it must not grow any more.
    if more and now < ends then
        local found
        if kind == 'event' then
            found, more, soonest = sendable_events(room)
        else
            found, more, soonest = sendable_usages(room)
        end
        mark(found, batch)
        if not more then void(tonumber(token)) end
    end
    local reports = in_batch(batch)
    for _, entry in ipairs(reports) do entry.attempts = entry.attempts + 1 end
    write()
    return {more and 1 or 0, soonest and soonest - now or '', redis.call('ZCARD', INDEX), rows_of(reports)}
end

-- Notes what a wallet has paid for a report that was counted.
local function pay(wallet, report, amount, ticket)
    local period = period_of(wallet)
    local paid = {period = '/', used_at = report.used_at, ticket = report.ticket, amount = amount, is_set = false}
    note(wallet, learned(wallet.row, paid, nil, '/', ticket, now), period)
end

-- token, {id, usage told or nothing, its period, the wallet that paid or nothing, how much}...
function steps.acknowledge()
    local given, batches, number = {'c'}, {}, 0
    for i = 3, #ARGV, 5 do
        table.insert(given, 'e' .. ARGV[i])
        if ARGV[i + 3] ~= '' then table.insert(given, 'k' .. ARGV[i + 3]) end
    end
    read(given)
    local again = refusal()
    if again then return again end
    local ticket = next_ticket()
    for i = 3, #ARGV, 5 do
        local entry = at('e', ARGV[i])
        if entry and not entry.gone then
            local key = at('k', name_of(entry.id))
            number = number + 1
            if entry.batch then batches[entry.batch] = true end
            weigh(entry, -1)
            entry.gone = true
            local period = period_of(key)
            note(key, learned(key.row, entry, tonumber(ARGV[i + 1]), ARGV[i + 2], ticket, now), period)
            if ARGV[i + 3] ~= '' then pay(at('k', ARGV[i + 3]), entry, tonumber(ARGV[i + 4]), ticket) end
        end
    end
    return changed(number, batches)
end

-- token, lasts, reason, id...
function steps.put_back()
    local lasts, reason = tonumber(ARGV[3]), ARGV[4]
    return change(5, {sending = true, uncertain = true}, function(entry)
        resume(entry)
        entry.ends, entry.lasts, entry.reason = lasts > 0 and now + lasts or 0, lasts, reason
    end)
end

-- token, lasts or nothing, reason, id...
function steps.doubt()
    local lasts, reason = tonumber(ARGV[3]), ARGV[4]
    return change(5, {sending = true, uncertain = true}, function(entry)
        entry.state, entry.ends, entry.lasts, entry.reason = 'uncertain', lasts and now + lasts, lasts or 0, reason
    end)
end

-- token, reason, id...
function steps.bury()
    local reason = ARGV[3]
    return change(4, {unsent = true, sending = true, uncertain = true, dead = true}, function(entry)
        weigh(entry, -1)
        entry.state, entry.reason = 'dead', reason
    end)
end

-- token, id...
function steps.retry()
    return change(3, {dead = true, uncertain = true}, function(entry)
        resume(entry)
        entry.ends, entry.reason = 0, ''
    end)
end

-- token, id...
function steps.discard()
    local ticket
    return change(3, {dead = true, uncertain = true}, function(entry)
        ticket = ticket or next_ticket()
        local key = at('k', name_of(entry.id))
        weigh(entry, -1)
        entry.gone = true
        local period = period_of(key)
        if entry.state == 'uncertain' then note(key, learned(key.row, entry, nil, '/', ticket, now), period) end
    end)
end

-- old batch, end of the new ones' lease, {id, new batch}...; the new batches that have their report now: none once that
-- lease has ended
function steps.split()
    local moved = {}
    for i = 4, now < tonumber(ARGV[3]) and #ARGV or 0, 2 do
        local entry = at('e', ARGV[i])
        if entry and entry.state == 'sending' and entry.batch == ARGV[2] then
            entry.batch, entry.attempts = ARGV[i + 1], 0
            table.insert(moved, ARGV[i + 1])
        end
    end
    write()
    return moved
end

-- token, size, lasts; after how long the next one is due comes first
function steps.take_uncertain()
    local size, lasts = tonumber(ARGV[3]), tonumber(ARGV[4])
    local due, entries = ids('w', 'w' .. digits(now + 1)), {}
    read({'c'})
    table.sort(due)
    for i = size + 1, #due do due[i] = nil end
    for i, entry in ipairs(all_at('e', due)) do
        entry.ends, entry.lasts = now + lasts, lasts
        entries[i] = entry
    end
    void(tonumber(ARGV[2]))
    write()
    local soonest = redis.call('ZRANGEBYLEX', INDEX, '[w', '(x', 'LIMIT', 0, 1)[1]
    return {soonest and math.max(0, tonumber(string.sub(soonest, 2, 17)) - now) or '', rows_of(entries)}
end

-- Lets what waits since before the clock was set back wait for its own time.
function steps.bring_back()
    for _, range in ipairs({{'u', 'w'}, {'w', 'x'}}) do
        for _, entry in ipairs(all_at('e', ids(range[1], range[2]))) do
            entry.ends = until_(entry.ends, entry.lasts, now)
        end
    end
    write()
end
